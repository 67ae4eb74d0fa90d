"""Data sets of the Hugging Face Hub: streamed once into a shard, from which workers read any image at once.

The data set's own code is not run. The shard lies beside the Hub's other files (HF_HOME); a later run uses it again.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xaihub.errors import InputError, MissingExtra
from xaihub.files import write_file
from xaihub.images.naming import file_names

HF = "hf:"
_BOXES = "boxes"
_MASKS = ("mask", "annotation", "segmentation")


def streamed(path: str, limit: int | None) -> str:
    """Return the shard with the first `limit` images of "hf:NAME:SPLIT", which is written if it is not there yet.

    The column "image" (or the only column of images) gives the image, "label" its class, "mask" its mask, and
    "objects" with "bbox" as (left, top, width, height), or "boxes" as (left, top, right, bottom), its boxes.

    Raises:
        MissingExtra: datasets is not installed.
        InputError: There is no such data set or split, or it has no images.
    """
    name, _, split = path.removeprefix(HF).partition(":")
    if not name or not split:
        raise InputError(f"{path!r} does not name a data set and a split", hint="for example hf:imagenet-1k:validation")
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{path!r} needs 'datasets'", hint="pip install 'xaihub[datasets]'") from error
    from huggingface_hub.constants import HF_HOME

    try:
        found = datasets.load_dataset(name, split=split, streaming=True)
        image, mask = _columns(found.features or {}, datasets.Image, path)
        for column in (image, *([mask] if mask else [])):
            found = found.cast_column(column, datasets.Image(decode=False))
        identity = f"{name}:{split}:{found.info.version or ''}:{limit or 'all'}"
        (title,) = file_names([name]).values()
        shard = Path(HF_HOME) / "xaihub" / f"{title}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.tar"
        if not shard.is_file():
            rows = iter(found if limit is None else found.take(limit))
            write_file(shard, lambda temporary: _write(temporary, rows, image, mask))
    except InputError:
        raise
    except Exception as error:  # the library raises many types, also those of the network
        raise InputError(f"cannot read {path!r}: {str(error).splitlines()[0] if str(error) else error!r}") from error
    return str(shard)


def _columns(features: Mapping[str, Any], kind: type, path: str) -> tuple[str, str | None]:
    images = [name for name, feature in features.items() if isinstance(feature, kind)]
    masks = [name for name in images if name in _MASKS]
    images = [name for name in images if name not in _MASKS]
    if not images:
        raise InputError(f"{path!r} has no column of images", hint=f"its columns: {', '.join(features)}")
    return ("image" if "image" in images else images[0]), (masks[0] if masks else None)


def _write(shard: Path, rows: Iterator[Mapping[str, Any]], image: str, mask: str | None) -> None:
    with tarfile.open(shard, "w") as archive:
        for number, row in enumerate(rows):
            _add(archive, f"{number:08d}.{_suffix(_bytes(row[image]))}", _bytes(row[image]))
            if isinstance(row.get("label"), int) and row["label"] >= 0:  # -1 stands for unknown
                _add(archive, f"{number:08d}.cls", str(row["label"]).encode())
            if mask is not None and row[mask] is not None:
                _add(archive, f"{number:08d}.mask.png", _bytes(row[mask]))
            boxes = _boxes(row)
            if boxes:
                _add(archive, f"{number:08d}.boxes.json", json.dumps(boxes).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _bytes(value: Mapping[str, Any]) -> bytes:
    found = value.get("bytes")
    return bytes(found) if found is not None else Path(value["path"]).read_bytes()


def _suffix(content: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return {"JPEG": "jpg", "TIFF": "tif"}.get(image.format or "", (image.format or "png").lower())


def _boxes(row: Mapping[str, Any]) -> list[list[float]]:
    objects = row.get("objects")
    if isinstance(objects, Mapping) and objects.get("bbox"):
        return [[left, top, left + width, top + height] for left, top, width, height in objects["bbox"]]
    return [list(box) for box in row.get(_BOXES) or ()]
