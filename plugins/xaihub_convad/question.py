"""The question that is asked of every mask: does the model still say the same?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xaihub import ExplainerRefused, Model, ResolvedTarget
from xaihub.masking import Removal, masked_forwards
from xaihub_convad.partition import Mask

__all__ = ["Question", "Verdicts"]

# Equal rows in batches of different sizes differ by less than this.
SLACK = 1e-5


@dataclass(frozen=True)
class Verdicts:
    """What the model says of n masks.

    Attributes:
        keeps: (n,) the target keeps its rank among the classes, or its lead over the class that it is compared with.
        confidence: (n,) its softmax probability, or the difference of two.
    """

    keeps: NDArray[np.bool_]
    confidence: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.keeps)

    def __getitem__(self, rows: slice) -> Verdicts:
        """Return the verdicts on some masks."""
        return Verdicts(self.keeps[rows], self.confidence[rows])

    def pass_at(self, confidence: float) -> NDArray[np.bool_]:
        """Tell for each mask whether the target is kept with at least this confidence: (n,)."""
        kept: NDArray[np.bool_] = self.keeps & (self.confidence >= confidence - SLACK)
        return kept

    @staticmethod
    def joined(parts: list[Verdicts]) -> Verdicts:
        """Put verdicts one after the other."""
        if len(parts) == 1:
            return parts[0]
        return Verdicts(
            np.concatenate([part.keeps for part in parts]), np.concatenate([part.confidence for part in parts])
        )


class Question:
    """One picture, one target, one way to hide pixels.

    Attributes:
        size: (H, W).
        rank: How many classes score at least as high as the target on the whole picture.
        confidence: The target's confidence on the whole picture.
        trivial: The target is kept with everything hidden.
        asked: Rows sent through the network so far.
    """

    def __init__(self, model: Model, image: Tensor, target: ResolvedTarget, removal: Removal) -> None:
        """Ask about the whole picture, and about none of it.

        Raises:
            ExplainerRefused: A contrast that the model does not decide for the target.
        """
        self._model, self._image, self._target, self._removal = model, image, target, removal
        self.size = (image.shape[-2], image.shape[-1])
        self.asked = 0
        self.rank = 0
        whole = torch.stack([torch.ones(self.size), torch.zeros(self.size)]).bool()
        outputs = torch.cat(list(self._outputs([whole])))
        self.rank = int(self._ahead(outputs[:1]))
        verdicts = self._judge(outputs)
        if not verdicts.keeps[0]:
            raise ExplainerRefused(
                f"model {model.name!r} does not prefer the first class of the contrast on this picture",
                hint="swap the two classes",
            )
        self.confidence = float(verdicts.confidence[0])
        self.trivial = bool(verdicts.keeps[1])

    def answers(self, masks: Iterable[Tensor]) -> Iterator[Verdicts]:
        """Yield verdicts on a stream of (n, H, W) masks in its order, in the engine's batches."""
        for outputs in self._outputs(masks):
            yield self._judge(outputs)

    def alone(self, mask: Mask) -> Verdicts:
        """Ask about one mask in a forward pass of its own."""
        return next(self.answers([torch.from_numpy(mask[None])]))

    def _outputs(self, masks: Iterable[Tensor]) -> Iterator[Tensor]:
        batches = masked_forwards(
            self._model,
            self._image,
            masks,
            removal=self._removal,
            expand=lambda part: part.unsqueeze(1).float(),
            done=self.asked,
        )
        for batch in batches:
            self.asked += len(batch.outputs)
            yield batch.outputs

    def _judge(self, outputs: Tensor) -> Verdicts:
        with torch.inference_mode():
            confidence = self._target.score(outputs.softmax(1)).double().cpu().numpy()
            keeps = self._ahead(outputs) <= self.rank if self._target.against is None else self._lead(outputs)
        return Verdicts(keeps.cpu().numpy(), confidence)

    def _ahead(self, outputs: Tensor) -> Tensor:
        """Count the other classes that score at least as high: (n,)."""
        own = outputs[:, self._target.index.to(outputs.device)]
        return (outputs >= own).sum(1) - 1

    def _lead(self, outputs: Tensor) -> Tensor:
        return self._target.score(outputs) > 0
