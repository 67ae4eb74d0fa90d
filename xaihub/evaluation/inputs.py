"""The inputs of a run's images for one model, each predicted once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from xaihub.errors import XaihubError
from xaihub.evaluation.dependence import neighbours
from xaihub.images import SourceImage, load_image
from xaihub.models.model import Model
from xaihub.models.preprocessing import Geometry

KEPT = 32  # as each image is a neighbour of several


@dataclass(frozen=True, kw_only=True)
class Input:
    """One image for one model: (C, H, W) input, how it was scaled and cropped, and its (K,) logits."""

    pixels: Tensor
    geometry: Geometry
    logits: Tensor


class Inputs:
    """Loads, prepares and predicts images; the last few stay in memory."""

    def __init__(self, model: Model, images: Sequence[str]) -> None:
        """Load nothing yet."""
        self._images = images
        self._model = model
        self._kept: OrderedDict[str, Input] = OrderedDict()
        self._logits: dict[str, Tensor] = {}

    @property
    def predicted(self) -> int:
        """Number of forward passes spent on predictions: one per image."""
        return len(self._logits)

    def get(self, source: str, image: SourceImage | None = None) -> Input:
        """Return an image's input.

        Raises:
            XaihubError: The image cannot be read, or its logits are not finite.
        """
        if source not in self._kept:
            pixels, geometry = self._model.prepare(image or load_image(source))
            if source not in self._logits:
                self._logits[source] = self._model.predict(pixels[None])[0].cpu()
            logits = self._logits[source].to(pixels.device)
            self._kept[source] = Input(pixels=pixels, geometry=geometry, logits=logits)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(source)
        return self._kept[source]

    def pool(self, position: int) -> list[tuple[Tensor, int]]:
        """Return the readable neighbours of the image at a position, with their predicted classes."""
        found = []
        for source in neighbours(self._images, position):
            with suppress(XaihubError):
                one = self.get(source)
                found.append((one.pixels, int(self._model.outputs.predicted(one.logits[None]))))
        return found
