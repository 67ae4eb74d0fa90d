"""The model zoo: cards, and the adapters for timm and torchvision."""

import os
from pathlib import Path

from xaihub.errors import XaihubError
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
def xaihub_register_models() -> list[ModelCard | XaihubError]:
    """Register the cards in `cards/`, and those in the folder given by XAIHUB_ZOO."""
    found = _cards(Path(__file__).parent / "cards")
    if own := os.environ.get("XAIHUB_ZOO"):
        found += _cards(Path(own).expanduser())
    return found


def _cards(folder: Path) -> list[ModelCard | XaihubError]:
    """Read every card of a folder; a card that cannot be read is replaced by its error."""
    from xaihub.models.cards import read_card  # here, because PyYAML costs as much as the rest of start-up

    if not folder.is_dir():
        return [XaihubError(f"XAIHUB_ZOO is {str(folder)!r}, which is not a folder")]
    found: list[ModelCard | XaihubError] = []
    for file in sorted(folder.glob("*.y*ml")):
        try:
            found.append(read_card(file))
        except XaihubError as error:
            found.append(error)
    return found
