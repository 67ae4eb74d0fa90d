"""CLIP and SigLIP networks of OpenCLIP: images compared with texts, or with images."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import AdapterSpec


@hookimpl
def xaihub_register_model_adapters() -> list[AdapterSpec]:
    """Register OpenCLIP."""
    return [
        AdapterSpec(
            name="openclip",
            target="xaihub_open_clip.adapter:OpenClipAdapter",
            summary="CLIP and SigLIP networks of OpenCLIP, for --text and --like.",
            prefixes=("openclip/",),
            extra="open_clip",
        )
    ]
