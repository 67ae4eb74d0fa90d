"""Networks in ONNX files, run by onnxruntime."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import AdapterSpec


@hookimpl
def xaihub_register_model_adapters() -> list[AdapterSpec]:
    """Register onnxruntime."""
    return [
        AdapterSpec(
            name="onnx",
            target="xaihub_onnx.adapter:OnnxAdapter",
            summary="Networks in ONNX files, run by onnxruntime, for black-box explainers.",
            prefixes=("onnx/",),
            suffixes=(".onnx",),
            extra="onnx",
        )
    ]
