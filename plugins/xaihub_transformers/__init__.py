"""Image classifiers and backbones of Hugging Face transformers, from a local folder or the hub."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import AdapterSpec


@hookimpl
def xaihub_register_model_adapters() -> list[AdapterSpec]:
    """Register transformers."""
    return [
        AdapterSpec(
            name="transformers",
            target="xaihub_transformers.adapter:TransformersAdapter",
            summary="Image classifiers, backbones and CLIP models of transformers, from a local folder or the hub.",
            prefixes=("transformers/",),
            extra="transformers",
        )
    ]
