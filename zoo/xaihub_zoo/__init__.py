"""The model zoo: cards, and the adapters for timm and torchvision."""

import os
from pathlib import Path

from xaihub.hookspecs import hookimpl
from xaihub.specs import AdapterSpec, ModelCard


@hookimpl
def xaihub_register_model_adapters() -> list[AdapterSpec]:
    """Register timm and torchvision."""
    return [
        AdapterSpec(
            name="timm",
            target="xaihub_zoo.timm_adapter:TimmAdapter",
            summary="Every architecture of timm, with timm's own weights and preprocessing.",
            prefixes=("timm/", "hf-hub:", "hf_hub:", "local-dir:"),
        ),
        AdapterSpec(
            name="torchvision",
            target="xaihub_zoo.torchvision_adapter:TorchvisionAdapter",
            summary="The classifiers of torchvision, with torchvision's own weights and preprocessing.",
            prefixes=("torchvision/",),
        ),
    ]


@hookimpl
def xaihub_register_models() -> list[ModelCard]:
    """Register the cards in `cards/`, and those in the folder that XAIHUB_ZOO names."""
    from xaihub.cards import read_card  # here, because PyYAML costs as much as the rest of start-up

    folders = [Path(__file__).parent / "cards"]
    if own := os.environ.get("XAIHUB_ZOO"):
        folders.append(Path(own).expanduser())
    return [read_card(file) for folder in folders for file in sorted(folder.glob("*.yaml"))]
