"""Images of explanations: overlays at the photo's own geometry, comparison grids, terminal output."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from xaihub.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xaihub.images import SourceImage
    from xaihub.models.preprocessing import Geometry

__all__ = ["Heat", "figure", "grid", "heat", "overlay", "painted", "pixel_sets", "png_bytes", "terminal_lines"]

# Equal steps in value look like equal steps in colour: inferno is perceptually uniform, coolwarm (Moreland 2009) was
# made so for diverging data; its red speaks for the target, its blue against.
SEQUENTIAL = "inferno"
DIVERGING = "coolwarm"
NARROWEST = 360  # pixels; smaller images are enlarged by a whole factor so that the legend can be read
CELL = 300  # pixels a side of one image in a comparison
MARGIN = 12
INK, PAPER, FAINT = (28, 28, 30), (255, 255, 255), (120, 120, 125)
HIDDEN = (226, 226, 230)
# Told apart by people with any colour vision (Okabe and Ito 2008).
OUTLINES = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (240, 228, 66)]


class Drawable(Protocol):
    """What drawing needs of an explanation; see `xaihub.Explanation`."""

    @property
    def values(self) -> torch.Tensor: ...
    @property
    def image(self) -> SourceImage | None: ...
    @property
    def geometry(self) -> Geometry | None: ...
    @property
    def extras(self) -> Mapping[str, torch.Tensor]: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def explainer(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def claim(self) -> str: ...
    @property
    def target(self) -> Any: ...
    @property
    def predicted(self) -> Any: ...
    @property
    def warnings(self) -> list[str]: ...

    def heatmap(self, *, original: bool = False) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A map made ready for colours.

    Attributes:
        strength: (H, W) in [0, 1] for a sequential map, in [-1, 1] for a signed one; NaN where nothing is known.
        signed: Some values speak against the target.
        low: The value at the colour scale's start.
        high: The value at its end.
    """

    strength: NDArray[np.float32]
    signed: bool
    low: float
    high: float

    def colours(self) -> NDArray[np.float32]:
        """Return (H, W, 3) colours in [0, 1]."""
        known = np.nan_to_num(self.strength)
        position = (known + 1) / 2 if self.signed else known
        return np.asarray(colormaps[DIVERGING if self.signed else SEQUENTIAL](position)[..., :3], dtype=np.float32)


def heat(explanation: Drawable) -> Heat:
    """Scale a map for drawing, in the original geometry where it is known.

    Signed maps are scaled symmetrically around zero, others from their smallest value. The scale ends at the
    99th percentile of magnitude (signed) or the 99.8th (others), so that single pixels do not hide the rest.
    """
    return _scaled(explanation.heatmap(original=explanation.geometry is not None).numpy())


def _scaled(values: NDArray[np.float32]) -> Heat:
    known = values[np.isfinite(values)]
    top = float(np.abs(known).max(initial=0.0))
    signed = bool(known.min(initial=0.0) < -1e-6 * top)
    if signed:
        high = float(np.percentile(np.abs(known), 99)) or top or 1.0
        return Heat(strength=np.clip(values / high, -1, 1), signed=True, low=-high, high=high)
    low = float(known.min()) if known.size else 0.0
    high = float(np.percentile(known, 99.8)) if known.size else 1.0
    high = high if high > low else top
    span = (high - low) or 1.0
    return Heat(strength=np.clip((values - low) / span, 0, 1), signed=False, low=low, high=low + span)


def overlay(explanation: Drawable) -> Image.Image:
    """Lay the map over the image, with a legend below: method, class, probability, colour scale.

    Raises:
        OutputError: The explanation has no image.
    """
    painted, scale = _painted(explanation)
    factor = max(1, -(-NARROWEST // painted.width))
    if factor > 1:
        painted = painted.resize((painted.width * factor, painted.height * factor), Image.Resampling.NEAREST)
    legend = _legend(explanation, scale, painted.width)
    canvas = Image.new("RGB", (painted.width, painted.height + legend.height), PAPER)
    canvas.paste(painted, (0, 0))
    canvas.paste(legend, (0, painted.height))
    return canvas


def grid(rows: Sequence[Sequence[Drawable]]) -> Image.Image:
    """Draw explanations of one image as one labelled grid: a row a model, a column an explainer.

    The image itself stands in the first column.
    """
    line = round(_font(15).getbbox("Ag")[3]) + 5
    label = 2 * line + MARGIN
    columns = max(map(len, rows)) + 1
    head = line + 2 * MARGIN
    tall = _fitted(_photo(rows[0][0])).height
    width, height = columns * (CELL + MARGIN) + MARGIN, head + len(rows) * (tall + label) + MARGIN
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(["image", *(item.explainer for item in rows[0])]):
        draw.text((MARGIN + column * (CELL + MARGIN), MARGIN), title, fill=INK, font=_font(16))
    for row, explanations in enumerate(rows):
        top = head + row * (tall + label)
        first = explanations[0]
        seen = _photo(first)
        cells = [(_framed(seen, first.geometry), first.model, f"sees {_short(str(first.predicted), 34)}")]
        for item in explanations:
            note = f"{_passes(item.metadata['forward_passes'])}, {item.metadata['seconds']:.1f} s"
            cells.append((_painted(item)[0], _short(item.claim, 34), note))
        for column, (image, bold, faint) in enumerate(cells):
            left = MARGIN + column * (CELL + MARGIN)
            small = _fitted(image)
            canvas.paste(small, (left, top))
            draw.text((left, top + tall + 4), bold, fill=INK, font=_font(15))
            draw.text((left, top + tall + 4 + line), faint, fill=FAINT, font=_font(13))
    return canvas


def pixel_sets(explanation: Drawable) -> Image.Image | None:
    """Draw the sets of pixels that an explanation returned, or None if it returned none.

    The photo with the outline of every set stands first, then each set's pixels alone, with what is known of it.

    Raises:
        OutputError: The explanation has no image.
    """
    photo = _photo(explanation)
    masks = {name: _mask(explanation, name) for name in explanation.extras if _is_set(explanation, name)}
    if not masks:
        return None
    facts = {one["name"]: one for one in explanation.metadata.get("details", {}).get("explanations", [])}
    outlined, pixels = np.asarray(photo).copy(), np.asarray(photo)
    panels = []
    for number, (name, mask) in enumerate(masks.items()):
        colour = OUTLINES[number % len(OUTLINES)]
        width = max(1, round(max(photo.size) / 150))
        outlined[_ring(mask, 2 * width)] = PAPER
        outlined[_ring(mask, width)] = colour
        alone = Image.fromarray(np.where(mask[..., None], pixels, np.array(HIDDEN)).astype(np.uint8))
        panels.append((alone, colour, name.replace("_", " "), _said(mask, facts.get(name))))
    first = (_framed(Image.fromarray(outlined), explanation.geometry), INK, explanation.explainer, explanation.claim)
    return _in_a_row([first, *panels])


def _in_a_row(panels: Sequence[tuple[Image.Image, tuple[int, int, int], str, str]]) -> Image.Image:
    """Put images beside each other, each with a title in a colour and a line of text below."""
    line = round(_font(15).getbbox("Ag")[3]) + 5
    small = [_fitted(image) for image, *_ in panels]
    size = (len(panels) * (CELL + MARGIN) + MARGIN, small[0].height + 2 * line + 2 * MARGIN)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, ((_, colour, title, text), image) in enumerate(zip(panels, small, strict=True)):
        left, below = MARGIN + column * (CELL + MARGIN), MARGIN + image.height + 4
        canvas.paste(image, (left, MARGIN))
        draw.rectangle((left, below + 3, left + 9, below + 12), fill=colour)
        draw.text((left + 15, below), title, fill=INK, font=_font(15))
        draw.text((left, below + line), _fit(draw, text, _font(13), CELL), fill=FAINT, font=_font(13))
    return canvas


def _is_set(explanation: Drawable, name: str) -> bool:
    values = explanation.extras[name]
    return (
        name.startswith("mask") and values.dtype == torch.uint8 and values.shape[-2:] == explanation.values.shape[-2:]
    )


def _mask(explanation: Drawable, name: str) -> NDArray[np.bool_]:
    """Return a set in the original image's geometry where that is known: (H, W)."""
    values = explanation.extras[name][0].float()
    if explanation.geometry is not None:
        values = explanation.geometry.to_original(values)
    inside: NDArray[np.bool_] = np.nan_to_num(values.numpy()) >= 0.5
    return inside


def _ring(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the pixels within `width` outside a mask."""
    image = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * width + 1))
    ring: NDArray[np.bool_] = (np.asarray(image) > 0) & ~mask
    return ring


def _said(mask: NDArray[np.bool_], facts: Mapping[str, Any] | None) -> str:
    """Say how large a set is, and what the model makes of it."""
    if facts is None:
        return f"{mask.mean():.1%} of the image"
    text = f"{facts['area']:.1%} of the input, confidence {facts['confidence']:.1%}"
    return text if facts["sufficient"] else f"{text}, not enough"


def painted(values: torch.Tensor, image: SourceImage, geometry: Geometry) -> Image.Image:
    """Lay any (H, W) map of a model's input over its image, in the image's geometry."""
    return _framed(_blended(_scaled(geometry.to_original(values).numpy()), image.rgb), geometry)


def figure(explanation: Drawable) -> Figure:
    """Return a matplotlib figure: the image, and the map over it with a colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    painted, scale = _painted(explanation)
    result = Figure(figsize=(9, 4), layout="constrained")
    left, right = result.subplots(1, 2)
    left.imshow(_photo(explanation))
    left.set_title(f"{explanation.model} sees {explanation.predicted}", fontsize=9)
    right.imshow(painted)
    right.set_title(f"{explanation.explainer}: {_short(explanation.claim, 60)}", fontsize=9)
    for axes in (left, right):
        axes.set_axis_off()
    colours = ScalarMappable(Normalize(scale.low, scale.high), colormaps[DIVERGING if scale.signed else SEQUENTIAL])
    result.colorbar(colours, ax=right, shrink=0.8)
    return result


def png_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def terminal_lines(
    image: Image.Image, columns: int
) -> Iterator[list[tuple[tuple[int, int, int], tuple[int, int, int]]]]:
    """Scale an image to `columns` characters and yield its lines as (upper, lower) colours of half blocks."""
    rows = max(2, round(columns * image.height / image.width) // 2 * 2)
    pixels = np.asarray(image.resize((columns, rows), Image.Resampling.LANCZOS)).tolist()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        yield [(tuple(a), tuple(b)) for a, b in zip(upper, lower, strict=True)]


def _photo(explanation: Drawable) -> Image.Image:
    if explanation.image is None:
        raise OutputError("this explanation has no image to draw on", hint="use with_image(image, geometry)")
    return explanation.image.rgb


def _painted(explanation: Drawable) -> tuple[Image.Image, Heat]:
    scale = heat(explanation)
    return _framed(_blended(scale, _photo(explanation)), explanation.geometry), scale


def _blended(scale: Heat, image: Image.Image) -> Image.Image:
    """Lay a map's colours over an image of the same size."""
    photo = np.asarray(image, dtype=np.float32) / 255
    grey = photo @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    # A pale grey photo underneath lets colour mean the map alone.
    ground = np.repeat((0.25 + 0.7 * grey)[..., None], 3, axis=2)
    strength = np.abs(np.nan_to_num(scale.strength))[..., None]
    # The photo stays visible under the strongest colours, and nearly bare where the map says nothing.
    opacity = 0.75 * np.sqrt(strength) if scale.signed else 0.25 + 0.5 * strength
    mixed = (1 - opacity) * ground + opacity * scale.colours()
    unseen = np.isnan(scale.strength)[..., None]
    mixed = np.where(unseen, 0.5 * ground + 0.5, mixed)
    return Image.fromarray(np.rint(np.clip(mixed, 0, 1) * 255).astype(np.uint8))


def _framed(image: Image.Image, geometry: Geometry | None) -> Image.Image:
    """Outline what the model sees, where that is less than the image."""
    if geometry is None:
        return image
    left, top, right, bottom = geometry.box()
    if left < 1 and top < 1 and right > image.width - 1 and bottom > image.height - 1:
        return image
    image = image.copy()
    edge = max(1, round(max(image.size) / 400))
    box = (max(0, left), max(0, top), min(image.width - 1, right), min(image.height - 1, bottom))
    ImageDraw.Draw(image).rectangle(box, outline=PAPER, width=edge)
    return image


def _legend(explanation: Drawable, scale: Heat, width: int) -> Image.Image:
    size = int(np.clip(width / 34, 11, 40))
    line = round(size * 1.45)
    margin = round(size * 0.7)
    room = width - 2 * margin
    lines = [f"{explanation.explainer}: {explanation.claim}", f"{explanation.model}"]
    if explanation.target.index != explanation.predicted.index:
        lines[1] += f", which sees {explanation.predicted}"
    lines += [f"note: {text}" for text in explanation.warnings[:2]]
    strip = Image.new("RGB", (width, margin * 2 + line * (len(lines) + 2)), PAPER)
    draw = ImageDraw.Draw(strip)
    font = _font(size)
    for number, text in enumerate(lines):
        colour = INK if number == 0 else FAINT
        draw.text((margin, margin + number * line), _fit(draw, text, font, room), fill=colour, font=font)
    top = margin + len(lines) * line + size // 4
    ramp = np.linspace(-1 if scale.signed else 0, 1, max(2, room), dtype=np.float32)[None].repeat(size // 2 + 2, 0)
    bar = Heat(strength=ramp, signed=scale.signed, low=scale.low, high=scale.high)
    strip.paste(Image.fromarray(np.rint(bar.colours() * 255).astype(np.uint8)), (margin, top))
    below = top + size // 2 + 4
    words = ("against", "for") if scale.signed else ("least", "most")
    start, end = f"{words[0]} {scale.low:.3g}", f"{words[1]} {scale.high:.3g}"
    small = _font(max(10, round(size * 0.8)))
    draw.text((margin, below), start, fill=FAINT, font=small)
    draw.text((width - margin, below), end, fill=FAINT, font=small, anchor="ra")
    return strip


def _passes(number: float) -> str:
    return f"{number:.0f} forward pass{'' if round(number) == 1 else 'es'}"


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text + "…"


def _fitted(image: Image.Image) -> Image.Image:
    ratio = CELL / max(image.size)
    return image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
