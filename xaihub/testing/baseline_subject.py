"""A removal operator under test, on the first toy network that it supports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xaihub.errors import XaihubError
from xaihub.masking import Removal
from xaihub.models.model import Model
from xaihub.specs import BaselineSpec
from xaihub.testing.catalogue import Refused
from xaihub.testing.process import Observation, observed
from xaihub.testing.toys import SIDE, images, tiny_cnn, tiny_plain, tiny_vit

ROWS = 5


class BaselineSubject:
    """A removal operator's record, and the function that creates it for an image."""

    def __init__(self, spec: BaselineSpec) -> None:
        """Check what the target of `spec` returns."""
        self.spec = spec
        self.name = spec.name
        self.make: Callable[[Model, Tensor], Any] = spec.load()
        self.seen = Observation()
        self._home: Callable[..., Model] | None = None

    def start(self) -> tuple[Model, Tensor, Any]:
        """Return a new toy, an image, and the removal operator for both.

        Raises:
            Refused: It supports none of the toys.
        """
        reasons = []
        for toy in (self._home,) if self._home else (tiny_cnn, tiny_vit, tiny_plain):
            model, image = toy(), images(1)[0]
            try:
                removal = self.make(model, image)
                if isinstance(removal, Removal):  # some look at the network only when they run it
                    removal(model, image, self.masks())
            except XaihubError as error:
                reasons.append(str(error))
                continue
            self._home = toy
            return model, image, removal
        raise Refused(f"it refuses every network of the kit: {reasons[0]}")

    def masks(self) -> Tensor:
        """Return (5, 1, H, W) masks: everything visible, nothing visible, and three of random cells."""
        cells = torch.rand(ROWS, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
        cells[0], cells[1] = True, False
        return cells.float().repeat_interleave(SIDE // 4, 2).repeat_interleave(SIDE // 4, 3)

    def scores(self) -> Tensor:
        """Return the (5, K) logits of the masked image, computed anew."""
        model, image, removal = self.start()
        with torch.inference_mode():
            scores: Tensor = removal(model, image, self.masks())
        return scores

    def exercise(self) -> None:
        """Create it and run it once, observed."""
        with observed(self.seen):
            self.scores()
