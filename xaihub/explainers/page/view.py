"""What a page shows of one explanation: small images without metadata, and facts as JSON types."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from xaihub.explainers.heat import Drawing, Heat, scaled, smoothed
from xaihub.explainers.page.document import data_uri, pathless
from xaihub.explainers.rendering import OUTLINES, in_original, ring
from xaihub.explainers.result import Result
from xaihub.models.preprocessing import Geometry
from xaihub.records import canonical

SIDE = 360  # pixels of the longer side of an image in a page
THUMBNAIL = 112
LEVELS = 63  # colours of a map, in addition to one for pixels outside the model's input
OUTSIDE = (255, 255, 255, 128)
DIMMED = (128, 128, 132, 150)
STOPS = 12  # colours of the gradient in a legend

Shown = tuple[int, int]


def fitted(size: Shown, side: int = SIDE) -> Shown:
    """Return the size at which an image is shown: at most `side` pixels, never enlarged."""
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def photo(image: Image.Image, side: int = SIDE) -> bytes:
    """Return an image as a small JPEG file of its pixels only: no EXIF, position, comment or colour profile."""
    pixels = np.asarray(image.resize(fitted(image.size, side), Image.Resampling.LANCZOS, reducing_gap=3))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue()


def view(explanation: Result, drawing: Drawing, *, images: bool = True) -> dict[str, Any]:
    """Return one explanation as JSON types: claim, map, colour scale, pixel sets, cost, warnings.

    Args:
        explanation: What is shown; its own image is not needed.
        drawing: How the map is drawn.
        images: Include the map and the sets.
    """
    record = explanation.metadata
    found: dict[str, Any] = {
        "claim": explanation.claim,
        "cost": cost(record),
        "warnings": explanation.warnings,
        "parameters": parameters(record.get("parameters", {})),
        "sets": [{"role": one.role, "claim": one.claim} for one in explanation.sets],
    }
    if images:
        scale, geometry = small_heat(explanation, drawing)
        found["map"] = data_uri(_map_png(scale), "png")
        found["scale"] = {"ends": list(scale.ends), "remarks": scale.remarks, "colours": _stops(scale)}
        for number, (one, shown) in enumerate(zip(explanation.sets, found["sets"], strict=True)):
            colour = OUTLINES[number % len(OUTLINES)]
            shown["mask"] = data_uri(_mask_png(in_original(one, geometry), colour), "png")
            shown["colour"] = "#{:02x}{:02x}{:02x}".format(*colour)
    return found


def small_heat(explanation: Result, drawing: Drawing) -> tuple[Heat, Geometry | None]:
    """Scale a map for drawing at the size of a page; also return the geometry at that size."""
    flat, sigma = smoothed(explanation.heatmap().numpy(), drawing.get("smooth"))
    geometry = explanation.geometry
    if geometry is not None:
        geometry = replace(geometry, original=fitted(geometry.original))
        flat = geometry.to_original(torch.from_numpy(flat)).numpy()
    return replace(scaled(flat, sigma), chosen=drawing.get("colormap")), geometry


def cost(record: Mapping[str, Any]) -> str:
    """Return the passes and seconds of an explanation in words."""
    counts = [(record.get(f"{way}_passes"), way) for way in ("forward", "backward")]
    parts = [f"{number:g} {way} pass{'' if number == 1 else 'es'}" for number, way in counts if number]
    seconds = record.get("seconds")
    return ", ".join([*parts, *([] if seconds is None else [f"{seconds:.3g} s"])])


def parameters(values: Mapping[str, Any]) -> str:
    """Return parameters as "name=value" in one line."""
    return ", ".join(f"{name}={plain_value(value)}" for name, value in values.items())


def plain_value(value: Any) -> str:
    """Return a value as `-p NAME=VALUE` takes it; of an absolute path, the last part."""
    value = pathless(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return canonical(value) if isinstance(value, (dict, list)) else "none" if value is None else str(value)


def command(name: str, record: Mapping[str, Any]) -> str:
    """Return the command that makes an explanation again from an image called `name`."""
    explainer = str(record.get("explainer", ""))
    words = ["xaihub", "explain", pathless(name), "-m", str(record.get("model", "")), "-e", explainer]
    for parameter, value in record.get("parameters", {}).items():
        if value is not None:
            words += ["-p", f"{parameter}={plain_value(value)}"]
    target = record.get("target")
    if isinstance(target, Mapping) and target.get("logit") is not None:
        against = record.get("against")
        named = str(target["index"]) if " + " not in str(target["name"]) else str(target["name"])
        words += ["-t", f"{named} vs {against['index']}" if isinstance(against, Mapping) else named]
    return shlex.join([*words, "--seed", str(record.get("seed", 0))])


def _map_png(scale: Heat) -> bytes:
    """Return a map as a PNG file with a palette: colour and opacity of each level."""
    start = -1.0 if scale.signed else 0.0
    levels = replace(scale, strength=np.linspace(start, 1, LEVELS, dtype=np.float32)[None])
    colours = np.rint(levels.colours()[0] * 255).astype(np.uint8)
    opacity = np.rint(levels.cover[0] * 255).astype(np.uint8)
    known = (np.nan_to_num(scale.strength) - start) / (1 - start)
    index = np.where(np.isnan(scale.strength), LEVELS, np.rint(known * (LEVELS - 1))).astype(np.uint8)
    return _palette_png(index, [*zip(*colours.T.tolist(), opacity.tolist(), strict=True), OUTSIDE])


def _mask_png(inside: NDArray[np.bool_], colour: tuple[int, int, int]) -> bytes:
    """Return a pixel set as a PNG file: its pixels clear, the others dimmed, an outline between."""
    index = np.where(inside, 0, 1).astype(np.uint8)
    index[ring(inside, 3)] = 2
    index[ring(inside, 2)] = 3
    return _palette_png(index, [(0, 0, 0, 0), DIMMED, (255, 255, 255, 255), (*colour, 255)])


def _palette_png(index: NDArray[np.uint8], palette: list[tuple[int, ...]]) -> bytes:
    image = Image.frombytes("P", index.shape[::-1], index.tobytes())
    image.putpalette([channel for entry in palette for channel in entry[:3]])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, transparency=bytes(entry[3] for entry in palette))
    return buffer.getvalue()


def _stops(scale: Heat) -> list[str]:
    colours = colormaps[scale.colormap](np.linspace(0, 1, STOPS))[:, :3]
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in np.rint(colours * 255).astype(int).tolist()]
