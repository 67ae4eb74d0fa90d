"""The inputs of a run's images for one model, each predicted once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from xaihub.errors import XaihubError
from xaihub.evaluation.dependence import neighbours
from xaihub.images import SourceImage, load_image
from xaihub.models.model import Model
from xaihub.models.preprocessing import Geometry

__all__ = ["Input", "Inputs", "Pool"]

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
        self.images = images
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
            pixels, geometry = self._model.prepare((image or load_image(source)).rgb)
            if source not in self._logits:
                self._logits[source] = self._model.predict(pixels[None])[0].cpu()
            logits = self._logits[source].to(pixels.device)
            self._kept[source] = Input(pixels=pixels, geometry=geometry, logits=logits)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(source)
        return self._kept[source]


class Pool(Sequence[tuple[Tensor, int]]):
    """The readable images that the one at a position may be combined with, with their predicted classes.

    They are loaded when first used.
    """

    def __init__(self, inputs: Inputs, position: int) -> None:
        """Load nothing yet."""
        self._inputs, self._position = inputs, position

    @cached_property
    def _found(self) -> list[tuple[Tensor, int]]:
        found = []
        for source in neighbours(self._inputs.images, self._position):
            try:
                one = self._inputs.get(source)
            except XaihubError:
                continue
            found.append((one.pixels, int(one.logits.argmax())))
        return found

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._found)

    def __getitem__(self, index):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN204
        """Return an input with its predicted class."""
        return self._found[index]
