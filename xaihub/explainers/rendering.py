"""Figures of explanations: overlays in the original image's geometry, comparison grids, terminal output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from xaihub.errors import OutputError
from xaihub.explainers.heat import ALPHA, Drawing, Heat, check_drawing, scaled, smoothed
from xaihub.explainers.pixel_set import PixelSet
from xaihub.explainers.result import Result
from xaihub.images.marking import marked_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xaihub.images import SourceImage
    from xaihub.models.preprocessing import Geometry


NARROWEST = 360  # pixels; narrower images are enlarged by an integer factor so that the legend is legible
TALLEST = 4000  # pixels; narrow images are not enlarged beyond this height
LARGEST, REDUCED = 2**25, 2**24  # pixels; larger images are drawn at a reduced size, which takes less memory
BLOCK = 2**20  # pixels that are blended at a time
CELL = 300  # pixels per side of one image in a comparison
MARGIN = 12
INK, PAPER, FAINT = (28, 28, 30), (255, 255, 255), (120, 120, 125)
MASKED = (226, 226, 230)
# Distinguishable with any colour vision (Okabe and Ito 2008).
OUTLINES = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (240, 228, 66)]

# An image, a title and a line of text below it, and the colour of a marker before the title.
Cell = tuple[Image.Image, str, str, tuple[int, int, int] | None]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def heat(explanation: Result, **drawing: Unpack[Drawing]) -> Heat:
    """Scale a map for drawing, in the original geometry where it is known.

    Args:
        explanation: What is drawn.
        drawing: See `Drawing`.

    Raises:
        ParameterError: There is no such colour map, or the opacity is out of range.
    """
    check_drawing(drawing)
    flat, sigma = smoothed(explanation.heatmap().numpy(), drawing.get("smooth"))
    if (geometry := explanation.geometry) is not None:
        placed = replace(geometry, original=_drawn_size(geometry.original))
        flat = placed.to_original(torch.from_numpy(flat)).numpy()
    return replace(scaled(flat, sigma), chosen=drawing.get("colormap"))


def overlay(explanation: Result, **drawing: Unpack[Drawing]) -> Image.Image:
    """Overlay the map on the image, with a legend below: method, class, probability, colour scale.

    An image of more than 33 million pixels is drawn with 16 million. `drawing` is that of `heat`.

    Raises:
        OutputError: The explanation has no image.
        ParameterError: As `heat`.
    """
    painted, scale = _painted(explanation, drawing)
    factor = max(1, min(-(-NARROWEST // painted.width), TALLEST // painted.height))
    if factor > 1:
        painted = painted.resize((painted.width * factor, painted.height * factor), Image.Resampling.NEAREST)
    legend = _legend(explanation, scale, max(painted.width, NARROWEST))
    canvas = Image.new("RGB", (legend.width, painted.height + legend.height), PAPER)
    canvas.paste(painted, (0, 0))
    canvas.paste(legend, (0, painted.height))
    return canvas


def plain_overlay(explanation: Result, **drawing: Unpack[Drawing]) -> Image.Image:
    """Overlay the map on the image, without legend or frame, at exactly the image's size; raises as `overlay`."""
    if explanation.image is None:
        raise OutputError("this explanation has no image to draw on", hint="use with_image(image, geometry)")
    photo = explanation.image.rgb
    drawn = _blended(heat(explanation, **drawing), _photo(explanation)[0], drawing.get("alpha", ALPHA))
    return drawn if drawn.size == photo.size else drawn.resize(photo.size)


def grid(rows: Sequence[Sequence[Result]], **drawing: Unpack[Drawing]) -> Image.Image:
    """Draw explanations of one image as a labelled grid: one row per model, one column per explainer.

    The first column shows the image. `drawing` is that of `heat`.
    """
    cells: list[list[Cell]] = []
    for explanations in rows:
        first = explanations[0]
        seen = _framed(*_photo(first))
        cells.append([(seen, first.model, f"predicts {first.predicted}", None)])
        for item in explanations:
            cost = f"{_passes(item.metadata['forward_passes'])}, {item.metadata['seconds']:.1f} s"
            cells[-1].append((_painted(item, drawing)[0], item.claim, cost, None))
    return _tiled(cells, ["image", *(item.explainer for item in rows[0])])


def sets_figure(explanation: Result) -> Image.Image | None:
    """Draw the sets of pixels that an explanation holds, or return None if it holds none.

    The image with the outline of each set comes first, then each set's pixels alone, captioned with its area and score.

    Raises:
        OutputError: The explanation has no image.
    """
    if not explanation.sets:
        return None
    photo, geometry = _photo(explanation)
    outlined, pixels = np.asarray(photo).copy(), np.asarray(photo)
    width = max(1, round(max(photo.size) / 150))
    roles = [one.role for one in explanation.sets]
    panels: list[Cell] = []
    for number, one in enumerate(explanation.sets):
        colour, mask = OUTLINES[number % len(OUTLINES)], in_original(one, geometry)
        outlined[ring(mask, 2 * width)] = PAPER
        outlined[ring(mask, width)] = colour
        alone = Image.fromarray(np.where(mask[..., None], pixels, np.array(MASKED)).astype(np.uint8))
        nth = f" {roles[: number + 1].count(one.role)}" if roles.count(one.role) > 1 else ""
        panels.append((alone, one.role + nth, one.claim, colour))
    first = (_framed(Image.fromarray(outlined), geometry), explanation.explainer, explanation.claim, INK)
    return _tiled([[first, *panels]])


def _tiled(rows: Sequence[Sequence[Cell]], titles: Sequence[str] = ()) -> Image.Image:
    """Arrange cells in rows, with a title above each column."""
    line = round(_font(15).getbbox("Ag")[3]) + 5
    head = line + 2 * MARGIN if titles else MARGIN
    tall = _fitted(rows[0][0][0]).height
    step = tall + 2 * line + MARGIN
    canvas = Image.new("RGB", (max(map(len, rows)) * (CELL + MARGIN) + MARGIN, head + len(rows) * step), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        draw.text((MARGIN + column * (CELL + MARGIN), MARGIN), title, fill=INK, font=_font(16))
    for number, cells in enumerate(rows):
        for column, (image, title, text, colour) in enumerate(cells):
            left, top = MARGIN + column * (CELL + MARGIN), head + number * step
            below, indent = top + tall + 4, 15 if colour else 0
            canvas.paste(_fitted(image), (left, top))
            if colour:
                draw.rectangle((left, below + 3, left + 9, below + 12), fill=colour)
            title, text = _fit(title, _font(15), CELL - indent), _fit(text, _font(13), CELL)
            draw.text((left + indent, below), title, fill=INK, font=_font(15))
            draw.text((left, below + line), text, fill=FAINT, font=_font(13))
    return canvas


def in_original(one: PixelSet, geometry: Geometry | None) -> NDArray[np.bool_]:
    """Return a set's (H, W) mask in the original image's geometry, where that is known."""
    values = one.mask.float()
    if geometry is not None:
        values = geometry.to_original(values)
    inside: NDArray[np.bool_] = np.nan_to_num(values.numpy()) >= 0.5
    return inside


def ring(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the pixels within `width` outside a mask."""
    image = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * width + 1))
    ring: NDArray[np.bool_] = (np.asarray(image) > 0) & ~mask
    return ring


def painted(values: torch.Tensor, image: SourceImage, geometry: Geometry) -> Image.Image:
    """Overlay any (H, W) map of a model's input on its image, in the image's geometry."""
    photo, shown = _reduced(image.rgb, geometry)
    flat, sigma = smoothed(values.numpy(), None)
    return _framed(_blended(scaled(shown.to_original(torch.from_numpy(flat)).numpy(), sigma), photo, ALPHA), shown)


def figure(explanation: Result, **drawing: Unpack[Drawing]) -> Figure:
    """Return a matplotlib figure: the image, and the map over it with a colour bar; `drawing` is that of `heat`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    painted, scale = _painted(explanation, drawing)
    result = Figure(figsize=(9, 4), layout="constrained")
    left, right = result.subplots(1, 2)
    left.imshow(_photo(explanation)[0])
    titles = (f"{explanation.model} predicts {explanation.predicted}",
              f"{explanation.explainer}: {_short(explanation.claim, 60)}")  # fmt: skip
    for axes, title in zip((left, right), titles, strict=True):
        axes.set_title(title.replace("$", r"\$"), fontsize=9)  # a dollar sign would begin a formula
    right.imshow(painted)
    for axes in (left, right):
        axes.set_axis_off()
    colours = ScalarMappable(Normalize(scale.low, scale.high), scale.colormap)
    bar = result.colorbar(colours, ax=right, shrink=0.8)
    bar.set_label(", ".join(text for text in (*scale.ends, scale.remarks) if text), fontsize=7)
    return result


def png_bytes(image: Image.Image) -> bytes:
    """Encode a figure as PNG, with a mark by which `find_images` recognises it."""
    return marked_png(partial(image.save, format="PNG"))


def terminal_lines(
    image: Image.Image, columns: int
) -> Iterator[list[tuple[tuple[int, int, int], tuple[int, int, int]]]]:
    """Scale an image to `columns` characters and yield its lines as (upper, lower) colours of half-block characters."""
    rows = max(2, round(columns * image.height / image.width) // 2 * 2)
    pixels = np.asarray(image.resize((columns, rows), Image.Resampling.LANCZOS)).tolist()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        yield [(tuple(a), tuple(b)) for a, b in zip(upper, lower, strict=True)]


def _photo(explanation: Result) -> tuple[Image.Image, Geometry | None]:
    """Return the image and its geometry at the size at which they are drawn."""
    if explanation.image is None:
        raise OutputError("this explanation has no image to draw on", hint="use with_image(image, geometry)")
    if explanation.geometry is None:
        return explanation.image.rgb, None
    return _reduced(explanation.image.rgb, explanation.geometry)


def _reduced(image: Image.Image, geometry: Geometry) -> tuple[Image.Image, Geometry]:
    size = _drawn_size(image.size)
    return (image if size == image.size else image.resize(size)), replace(geometry, original=size)


def _drawn_size(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] <= LARGEST:
        return size
    factor = (REDUCED / (size[0] * size[1])) ** 0.5
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


def _painted(explanation: Result, drawing: Drawing) -> tuple[Image.Image, Heat]:
    photo, geometry = _photo(explanation)
    scale = heat(explanation, **drawing)
    return _framed(_blended(scale, photo, drawing.get("alpha", ALPHA)), geometry), scale


def _blended(scale: Heat, image: Image.Image, alpha: float) -> Image.Image:
    """Blend a map's colours with an image of the same size, some rows at a time."""
    result, rows = Image.new("RGB", image.size), max(1, BLOCK // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_blended_rows(replace(scale, strength=scale.strength[top : top + rows]), part, alpha), (0, top))
    return result


def _blended_rows(scale: Heat, image: Image.Image, alpha: float) -> Image.Image:
    photo = np.asarray(image, dtype=np.float32) / 255
    grey = photo @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    # On a pale grey image, colour can only come from the map.
    ground = np.repeat((0.25 + 0.7 * grey)[..., None], 3, axis=2)
    opacity = alpha * scale.cover[..., None]
    mixed = (1 - opacity) * ground + opacity * scale.colours()
    unseen = np.isnan(scale.strength)[..., None]
    mixed = np.where(unseen, 0.5 * ground + 0.5, mixed)
    return Image.fromarray(np.rint(np.clip(mixed, 0, 1) * 255).astype(np.uint8))


def _framed(image: Image.Image, geometry: Geometry | None) -> Image.Image:
    """Outline the model's input, where it is smaller than the image."""
    if geometry is None:
        return image
    left, top, right, bottom = geometry.box()
    if left < 1 and top < 1 and right > image.width - 1 and bottom > image.height - 1:
        return image
    image = image.copy()
    edge = max(1, round(max(image.size) / 400))
    box = (
        min(max(0, left), image.width - 1),
        min(max(0, top), image.height - 1),
        max(0, min(image.width - 1, right)),
        max(0, min(image.height - 1, bottom)),
    )
    ImageDraw.Draw(image).rectangle(box, outline=PAPER, width=edge)
    return image


def _legend(explanation: Result, scale: Heat, width: int) -> Image.Image:
    size = int(np.clip(width / 34, 11, 40))
    line = round(size * 1.45)
    margin = round(size * 0.7)
    room = width - 2 * margin
    font = _font(size)
    model = explanation.model
    if explanation.target.index != explanation.predicted.index:
        model += f", which predicts {explanation.predicted}"
    lines = [_fit(text, font, room) for text in (f"{explanation.explainer}: {explanation.claim}", model)]
    for text in explanation.warnings[:2]:
        lines += _wrapped(f"note: {text}", font, room)
    strip = Image.new("RGB", (width, margin * 2 + line * (len(lines) + 2)), PAPER)
    draw = ImageDraw.Draw(strip)
    for number, text in enumerate(lines):
        draw.text((margin, margin + number * line), text, fill=FAINT if number else INK, font=font)
    top = margin + len(lines) * line + size // 4
    ramp = np.linspace(-1 if scale.signed else 0, 1, max(2, room), dtype=np.float32)[None].repeat(size // 2 + 2, 0)
    bar = replace(scale, strength=ramp)
    strip.paste(Image.fromarray(np.rint(bar.colours() * 255).astype(np.uint8)), (margin, top))
    below = top + size // 2 + 4
    start, end = scale.ends
    small = _font(max(10, round(size * 0.8)))
    draw.text((margin, below), start, fill=FAINT, font=small)
    draw.text((width - margin, below), end, fill=FAINT, font=small, anchor="ra")
    left, right = 2 * margin + small.getlength(start), width - 2 * margin - small.getlength(end)
    remarks = _fit(scale.remarks, small, right - left)
    draw.text(((left + right) / 2, below), remarks, fill=FAINT, font=small, anchor="ma")
    return strip


def _passes(number: float) -> str:
    return f"{number:.0f} forward pass{'' if round(number) == 1 else 'es'}"


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _fit(text: str, font: Font, room: float) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, font: Font, room: float) -> list[str]:
    """Break a text between words into at most three lines."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > room and len(lines) < 3:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fit(part, font, room) for part in lines]


def _fitted(image: Image.Image) -> Image.Image:
    ratio = CELL / max(image.size)
    return image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))


def _font(size: int) -> Font:
    return ImageFont.load_default(size)
