"""Built-in image sets that need no download."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from xaihub.errors import InputError
from xaihub.training.data.images import LabelledImages
from xaihub.training.seeds import seed_of

if TYPE_CHECKING:
    from PIL.Image import Image


SHAPES = ("disc", "ring", "cross", "bars")
_SIDE = 96


def digits(data: str) -> LabelledImages:
    """scikit-learn's 1797 digits of 8 x 8 pixels, as grey images."""
    if data != "digits":
        raise InputError(f"there are no data {data!r}", hint="write digits without a number")
    labels = _digits()[1]
    return LabelledImages(
        name=data,
        classes=tuple("0123456789"),
        labels=labels,
        names=[f"digits/{index}" for index in range(len(labels))],
        read=_digit,
        files=False,
        upright=True,
    )


def _digit(index: int) -> Image:
    from PIL import Image

    return Image.fromarray(_digits()[0][index]).convert("RGB")


@cache
def _digits() -> tuple[Any, list[int]]:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return np.rint(loaded.images * (255 / 16)).astype(np.uint8), [int(label) for label in loaded.target]


def evidence(data: str) -> LabelledImages:
    """Noise with one small shape that alone determines the class: "evidence", or "evidence:N" for N images."""
    _, _, text = data.partition(":")
    if text and not (text.isdecimal() and len(text) < 7 and int(text) >= 2 * len(SHAPES)):
        hint = f"give a number from {2 * len(SHAPES)} to 999999"
        raise InputError(f"evidence cannot have {text[:40]!r} images", hint=hint)
    count = int(text or 800)
    return LabelledImages(
        name=data,
        classes=SHAPES,
        labels=[index % len(SHAPES) for index in range(count)],
        names=[f"evidence/{index}" for index in range(count)],
        read=_evidence,
        mask=_mask,
        files=False,
    )


def _evidence(index: int) -> Image:
    return evidence_image(index)[0]


def _mask(index: int) -> Image:
    from PIL import Image

    return Image.fromarray(evidence_image(index)[1].astype(np.uint8) * 255)


def evidence_image(index: int) -> tuple[Image, Any]:
    """Return image `index` of "evidence", and the (96, 96) mask of the pixels that determine its class."""
    from PIL import Image

    draw = np.random.default_rng(seed_of("evidence", index))
    side = int(draw.integers(20, 32))
    top, left = draw.integers(0, _SIDE - side, 2)
    y, x = np.mgrid[0:side, 0:side] / (side - 1) * 2 - 1
    radius = np.hypot(x, y)
    shape = SHAPES[index % len(SHAPES)]
    inside = {
        "disc": radius <= 0.9,
        "ring": (radius <= 1) & (radius >= 0.6),
        "cross": (np.abs(x) <= 0.25) | (np.abs(y) <= 0.25),
        "bars": np.abs(np.abs(x) - 0.6) <= 0.25,
    }[shape]
    mask = np.zeros((_SIDE, _SIDE), dtype=bool)
    mask[top : top + side, left : left + side] = inside
    coarse = draw.uniform(60, 150, (6, 6, 3)).repeat(_SIDE // 6, axis=0).repeat(_SIDE // 6, axis=1)
    pixels = coarse + draw.normal(0, 20, (_SIDE, _SIDE, 3))
    pixels[mask] += draw.uniform(70, 110)  # brighter than its surroundings, without a colour
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), mask


BUILT_IN: dict[str, Callable[[str], LabelledImages]] = {"digits": digits, "evidence": evidence}
