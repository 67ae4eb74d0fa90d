"""Contact sheet of channels: the images that activate each channel most, overlaid with the channel's map."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub.api.rank import Photos
from xaihub.errors import OutputError
from xaihub.explainers.rendering import painted
from xaihub.images import load_image
from xaihub.models.model import Model
from xaihub.models.structure import Layer
from xaihub.ranking.explanation import GlobalExplanation, RankedFeature

CELL, MARGIN, HEAD, CAPTION = 200, 10, 190, 22  # pixels: longer side of an image, gap, row title, caption
INK, PAPER, FAINT = (28, 28, 30), (255, 255, 255), (120, 120, 125)
NOTE = "Channel importance, not pixel importance: a map shows where the channel is active, not what supports a class."


@dataclass(frozen=True, kw_only=True)
class ChannelView:
    """One image that activates one channel.

    Attributes:
        source: The image's file.
        activation: The channel's value in the input of the classifier head.
        heat: (H, W) map of the channel on the model's input.
    """

    source: str
    activation: float
    heat: Tensor


def channel_views(
    model: Model, explanation: GlobalExplanation, photos: Photos, *, top: int = 5, across: int = 4
) -> tuple[list[tuple[RankedFeature, list[ChannelView]]], str]:
    """Return the `across` most activating images for each of the `top` channels, and how their maps were computed.

    Raises:
        OutputError: The features are not channels, or there are no images.
    """
    if not sheets_possible(explanation, photos.sources):
        raise OutputError(f"no contact sheet of {explanation.feature} features and {len(photos.sources)} images")
    ranked = explanation.ranking[:top]
    with model.untouched():
        look = _Look(model, str(explanation.metadata["layer"]))
        values = torch.cat([look.features(batch) for batch in photos])  # (N, d)
        layer = look.averaged(photos.prepare(photos.sources[0]).unsqueeze(0))
        rows = []
        for item in ranked:
            best = values[:, item.index].argsort(descending=True, stable=True)[:across].tolist()
            views = []
            for number in best:
                inputs = photos.prepare(photos.sources[number]).unsqueeze(0)
                views.append(
                    ChannelView(
                        source=photos.sources[number],
                        activation=float(values[number, item.index]),
                        heat=look.heat(inputs, item.index, layer),
                    )
                )
            rows.append((item, views))
    if layer is not None:
        return rows, f"maps: the channel at layer {layer.name!r}, before average pooling"
    return rows, f"maps: gradient of the channel times activations of layer {model.layer().name!r} (as in Grad-CAM)"


class _Look:
    """Forward passes that record the channels and, on request, a layer's output."""

    def __init__(self, model: Model, name: str) -> None:
        self.model = model
        self.target = model.module.get_submodule(name)  # the channels are its input

    def run(self, inputs: Tensor, layer: Layer | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the (b, d) channels, and the output of a layer as (b, C, h, w)."""
        channels: list[Tensor] = []
        maps: list[Tensor] = []

        def before(_module: nn.Module, given: tuple[Any, ...]) -> None:
            channels.append(given[0])

        def after(_module: nn.Module, _given: Any, output: Tensor) -> None:
            maps.append(output)

        with ExitStack() as stack:
            stack.callback(self.target.register_forward_pre_hook(before).remove)
            if layer is not None:
                stack.callback(layer.module.register_forward_hook(after).remove)
            self.model(inputs)
        return channels[-1], None if layer is None else maps[-1]

    def features(self, inputs: Tensor) -> Tensor:
        """Return the (b, d) channels on the CPU."""
        with torch.no_grad():
            return self.run(inputs)[0].float().cpu()

    def averaged(self, inputs: Tensor) -> Layer | None:
        """Return the last layer whose spatial mean equals the channels, so that its maps show them, or None."""
        with torch.no_grad():
            for layer in reversed(self.model.structure.spatial.values()):
                channels, maps = self.run(inputs, layer)
                if layer.channels != channels.shape[1] or maps is None:
                    continue
                if torch.allclose(layer.to_grid(maps).mean((2, 3)), channels, rtol=1e-3, atol=1e-4):
                    return layer
        return None

    def heat(self, inputs: Tensor, channel: int, layer: Layer | None) -> Tensor:
        """Return the (H, W) map of where the channel is active in one image."""
        if layer is not None:
            with torch.no_grad():
                maps = self.run(inputs, layer)[1]
            assert maps is not None  # noqa: S101 - a layer was given
            coarse = layer.to_grid(maps)[:, channel : channel + 1]
        else:
            chosen = self.model.layer()
            with torch.enable_grad():
                channels, maps = self.run(inputs.clone().requires_grad_(), chosen)
                assert maps is not None  # noqa: S101
                (gradient,) = torch.autograd.grad(channels[0, channel], maps)
            weight = chosen.to_grid(gradient).mean((2, 3), keepdim=True)
            coarse = (weight * chosen.to_grid(maps)).sum(1, keepdim=True)
        smooth = F.interpolate(coarse.detach().float(), size=inputs.shape[2:], mode="bilinear")
        return smooth[0, 0].clamp(min=0).cpu()  # (H, W)


def channel_sheet(
    model: Model, explanation: GlobalExplanation, photos: Photos, *, top: int = 5, across: int = 4
) -> Image.Image:
    """Draw one row per top channel: its weight, and its most activating images overlaid with maps.

    Raises:
        OutputError: As `channel_views`.
    """
    rows, how = channel_views(model, explanation, photos, top=top, across=across)
    columns = max(len(views) for _, views in rows)
    tall = CELL + CAPTION + MARGIN
    width = max(HEAD + columns * (CELL + MARGIN) + MARGIN, 760)
    sheet = Image.new("RGB", (width, 2 * MARGIN + 34 + len(rows) * tall + 44), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), explanation.claim, fill=INK, font=_font(17))
    uniform = float(explanation.weights.mean())
    for number, (item, views) in enumerate(rows):
        y = MARGIN + 34 + number * tall
        facts = [f"weight {item.weight:.3g}", f"{item.weight / uniform:.2f} x the mean" if uniform else ""]
        if item.low is not None:
            facts.append(f"95 %: {item.low:.3g} to {item.high:.3g}")
        draw.text((MARGIN, y + 6), f"{item.rank}. {item.name}", fill=INK, font=_font(16))
        for line, text in enumerate(facts):
            draw.text((MARGIN, y + 34 + 20 * line), text, fill=FAINT, font=_font(13))
        for column, view in enumerate(views):
            _put(sheet, draw, model, view, x=HEAD + column * (CELL + MARGIN), y=y)
    foot = sheet.height - 44
    draw.text((MARGIN, foot), NOTE, fill=FAINT, font=_font(12))
    draw.text((MARGIN, foot + 18), how, fill=FAINT, font=_font(12))
    return sheet


def _put(sheet: Image.Image, draw: ImageDraw.ImageDraw, model: Model, view: ChannelView, *, x: int, y: int) -> None:
    photo = load_image(view.source)
    image = painted(view.heat, photo, model.prepare(photo.rgb)[1])
    image.thumbnail((CELL, CELL))
    sheet.paste(image, (x, y + CELL - image.height))  # bottom left, above its caption
    text = f"{view.activation:.3g}  {Path(view.source).stem}"
    while draw.textlength(text, font=_font(12)) > CELL:
        text = f"{text.removesuffix('…')[:-1]}…"
    draw.text((x, y + CELL + 2), text, fill=FAINT, font=_font(12))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def sheets_possible(explanation: GlobalExplanation, sources: Sequence[str]) -> bool:
    """Return whether a contact sheet can be drawn."""
    return explanation.feature == "channel" and bool(explanation.metadata.get("layer")) and bool(sources)
