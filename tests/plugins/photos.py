"""A small image with colours, edges and a spot, for networks that are built in a test."""

from __future__ import annotations

import numpy as np
from PIL import Image


def photo(side: int = 48, seed: int = 0) -> Image.Image:
    """An image that is wider than high; another seed turns it."""
    rows, columns = np.mgrid[:side, : side + 16]
    grey = 110 + 90 * np.sin(rows / 5) * np.cos(columns / 7)
    colours = np.stack([grey, np.roll(grey, 9, 0), 255 - grey], axis=-1)
    colours[8:20, 30:44] = (250, 40, 40)
    return Image.fromarray(np.rot90(colours, 2 * seed).astype(np.uint8))
