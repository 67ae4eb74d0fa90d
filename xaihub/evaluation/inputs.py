"""The inputs of a run's images for one model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xaihub.errors import XaihubError
from xaihub.evaluation import places
from xaihub.images import SourceImage
from xaihub.models.model import Model
from xaihub.models.preprocessing import Geometry

KEPT = 32  # as each image is a neighbour of several
PREDICTED = 4096  # images whose predictions are kept


@dataclass(frozen=True, kw_only=True)
class Input:
    """One image for one model: (C, H, W) input, how it was scaled and cropped, and its (K,) logits."""

    pixels: Tensor
    geometry: Geometry
    logits: Tensor


class Inputs:
    """Loads, prepares and predicts images; the last few stay in memory, and the predictions of many more."""

    def __init__(self, model: Model, *, page: int | None = None) -> None:
        """Load nothing yet; `page` as for `load_image`."""
        self._model, self._page = model, page
        self._kept: OrderedDict[str, Input] = OrderedDict()
        self._logits: OrderedDict[str, Tensor] = OrderedDict()
        self.predicted = 0  # forward passes spent on predictions

    def get(self, where: str, image: SourceImage | None = None) -> Input:
        """Return the input of the image at a place, see `xaihub.evaluation.places`.

        Raises:
            XaihubError: The image cannot be read, or its logits are not finite.
        """
        if where not in self._kept:
            pixels, geometry = self._model.prepare(image or places.load(where, where, page=self._page))
            if where not in self._logits:
                self._logits[where] = self._model.predict(pixels[None])[0].cpu()
                self.predicted += 1
            logits = self._logits[where].to(pixels.device)
            self._kept[where] = Input(pixels=pixels, geometry=geometry, logits=logits)
        kept: OrderedDict[str, Any]
        for kept, most in ((self._kept, KEPT), (self._logits, PREDICTED)):
            kept.move_to_end(where)
            if len(kept) > most:
                kept.popitem(last=False)
        return self._kept[where]

    def pool(self, wheres: Sequence[str]) -> list[tuple[Tensor, int]]:
        """Return the readable images among some, with their predicted classes."""
        found = []
        for where in wheres:
            with suppress(XaihubError):
                one = self.get(where)
                found.append((one.pixels, int(self._model.outputs.predicted(one.logits[None]))))
        return found
