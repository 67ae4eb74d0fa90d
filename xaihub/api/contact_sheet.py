"""Contact sheet of channels: the images that activate each channel most, overlaid with the channel's map."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub.api.rank import Photos
from xaihub.explainers.rendering import painted
from xaihub.images import load_image
from xaihub.models.layer import Layer
from xaihub.models.model import Model
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
    model: Model, explanation: GlobalExplanation, photos: Photos, *, top: int, across: int = 4
) -> tuple[list[tuple[RankedFeature, list[ChannelView]]], str]:
    """Return the `across` most activating images for each of the `top` channels, and how their maps were computed."""
    rows = []
    with model.untouched(), torch.no_grad():
        look = _Look(model, str(explanation.metadata["layer"]))
        values = torch.cat([look.run(batch)[0].float().cpu() for batch in photos])  # (N, d)
        layer = look.averaged(photos.prepare(photos.sources[0]).unsqueeze(0))
        for item in explanation.ranking[:top]:
            found = values[:, item.index].sort(descending=True, stable=True)
            views = []
            for activation, number in zip(found.values[:across].tolist(), found.indices.tolist(), strict=False):
                source = photos.sources[number]
                heat = look.heat(photos.prepare(source).unsqueeze(0), item.index, layer)
                views.append(ChannelView(source=source, activation=activation, heat=heat))
            rows.append((item, views))
    if layer is not None:
        return rows, f"maps: the channel at layer {layer.name!r}, before average pooling"
    return rows, f"maps: gradient of the channel times activations of layer {model.layer().name!r} (as in Grad-CAM)"


class _Look:
    """Forward passes that record the channels and, on request, a layer's output."""

    def __init__(self, model: Model, name: str) -> None:
        self.model = model
        self.target = model.module.get_submodule(name)  # the channels are its input

    def run(self, inputs: Tensor, layer: Layer | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the (b, d) channels, and the outputs of a layer."""
        channels: list[Tensor] = []
        recording: AbstractContextManager[list[Tensor]] = nullcontext([]) if layer is None else layer.outputs()
        handle = self.target.register_forward_pre_hook(lambda _module, given: channels.append(given[0]))
        try:
            with recording as maps:
                self.model(inputs)
        finally:
            handle.remove()
        return channels[-1], maps

    def averaged(self, inputs: Tensor) -> Layer | None:
        """Return the last layer whose spatial mean equals the channels, so that its maps show them, or None."""
        for layer in reversed(self.model.structure.spatial.values()):
            channels, maps = self.run(inputs, layer)
            means = layer.to_grid(maps[-1]).mean((2, 3))
            if means.shape == channels.shape and torch.allclose(means, channels, rtol=1e-3, atol=1e-4):
                return layer
        return None

    def heat(self, inputs: Tensor, channel: int, layer: Layer | None) -> Tensor:
        """Return the (H, W) map of where the channel is active in one image."""
        shown = layer or self.model.layer()
        with torch.set_grad_enabled(layer is None):
            channels, (output,) = self.run(inputs.clone().requires_grad_(layer is None), shown)
            coarse = shown.to_grid(output)
            if layer is not None:
                coarse = coarse[:, channel : channel + 1]
            else:
                (gradient,) = torch.autograd.grad(channels[0, channel], output)
                coarse = (shown.to_grid(gradient).mean((2, 3), keepdim=True) * coarse).sum(1, keepdim=True)
        smooth = F.interpolate(coarse.detach().float(), size=inputs.shape[2:], mode="bilinear")
        return smooth[0, 0].clamp(min=0).cpu()  # (H, W)


def channel_sheet(model: Model, explanation: GlobalExplanation, photos: Photos, *, top: int) -> Image.Image:
    """Draw one row per top channel: its weight, and its most activating images overlaid with maps."""
    rows, how = channel_views(model, explanation, photos, top=top)
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
            _put(sheet, draw, photos, view, x=HEAD + column * (CELL + MARGIN), y=y)
    foot = sheet.height - 44
    draw.text((MARGIN, foot), NOTE, fill=FAINT, font=_font(12))
    draw.text((MARGIN, foot + 18), how, fill=FAINT, font=_font(12))
    return sheet


def _put(sheet: Image.Image, draw: ImageDraw.ImageDraw, photos: Photos, view: ChannelView, *, x: int, y: int) -> None:
    photo, model = load_image(view.source, page=photos.page), photos.model
    image = painted(view.heat, model.preprocessing.shown(photo), model.prepare(photo)[1])
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
