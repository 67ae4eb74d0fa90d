"""Files of a map at the original image's geometry: PNG, NPY and NPZ."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Unpack

import numpy as np

from xaihub.explainers.heat import Drawing
from xaihub.explainers.rendering import in_original, plain_overlay, png_bytes
from xaihub.explainers.result import Result
from xaihub.files import write_file

SUFFIXES = (".png", ".npy", ".npz")


def save_map(explanation: Result, path: str | Path, **drawing: Unpack[Drawing]) -> Path:
    """Write a map at exactly the original image's size; the suffix of `path` decides how.

    .png is the overlay without legend; .npy is the (H, W) float32 values, summed over channels, NaN outside the model's
    input; .npz is the same as `values`, with the pixel sets as (n, H, W) bool `sets` and their `roles`.

    Raises:
        OutputError: The geometry or the image is unknown, or the file cannot be written.
        ParameterError: The colour map or the opacity of `drawing` cannot be used.
    """
    file = Path(path)
    if file.suffix == ".png":
        return write_file(file, png_bytes(plain_overlay(explanation, **drawing)))
    buffer, values = io.BytesIO(), explanation.heatmap(original=True).numpy()
    if file.suffix == ".npy":
        np.save(buffer, values, allow_pickle=False)
    else:
        masks = [in_original(one, explanation.geometry) for one in explanation.sets]
        np.savez_compressed(
            buffer,
            values=values,
            sets=np.stack(masks) if masks else np.zeros((0, *values.shape), dtype=bool),
            roles=np.array([one.role for one in explanation.sets], dtype=np.str_),
        )
    return write_file(file, buffer.getvalue())
