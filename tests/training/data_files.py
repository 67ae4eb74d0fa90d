"""Image files and labels, for the tests of training data."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from xaihub.training.data.images import LabelledImages


def save(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)
    return path


def labelled(labels: list[int], classes: int, parts: list[str] | None = None) -> LabelledImages:
    names = [str(index) for index in range(len(labels))]
    return LabelledImages(
        name="toy",
        classes=tuple("abcdefgh"[:classes]),
        labels=labels,
        names=names,
        parts=parts or (),
        read=lambda _index: Image.new("RGB", (8, 8)),
    )
