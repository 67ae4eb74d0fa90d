"""Evaluation of masks: does the model keep its decision if it sees only these pixels, and with which confidence?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xaihub import ExplainerRefused, Model, ResolvedTarget
from xaihub.masking import Fill, Removal, masked_forward_passes
from xaihub_convad.deactivation import Deactivation
from xaihub_convad.search.partition import Mask, Values

# Equal rows in batches of different sizes differ by less than this.
SLACK = 1e-5


@dataclass(frozen=True)
class Verdicts:
    """The model's decisions for n masks."""

    keeps: Mask  # (n,) whether the target keeps its rank among the classes, or its lead over the contrasted class
    confidence: Values  # (n,) its probability, or the difference of two
    runner_up: Values  # (n,) the highest probability of another class; NaN for a contrast

    def __len__(self) -> int:
        """Return the number of masks."""
        return len(self.keeps)

    def __getitem__(self, rows: slice) -> Verdicts:
        """Return the verdicts on some masks."""
        return Verdicts(self.keeps[rows], self.confidence[rows], self.runner_up[rows])

    def pass_at(self, confidence: float) -> NDArray[np.bool_]:
        """Return for each mask whether the target is kept with at least this confidence: (n,)."""
        kept: NDArray[np.bool_] = self.keeps & (self.confidence >= confidence - SLACK)
        return kept

    @staticmethod
    def joined(parts: list[Verdicts]) -> Verdicts:
        """Concatenate verdicts."""
        return Verdicts(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("keeps", "confidence", "runner_up"))
        )


class Evaluator:
    """Judges masks of one (C, H, W) image, for one target and one removal."""

    def __init__(self, model: Model, image: Tensor, target: ResolvedTarget, removal: Removal) -> None:
        """Evaluate the whole image, and the image with everything masked.

        Raises:
            ExplainerRefused: The model makes no decision about the target, or does not decide for it on this image.
        """
        if target.undecided:
            raise ExplainerRefused(target.undecided)
        self.model, self.image, self.removal = model, image, removal
        self._target = target
        self.size = (image.shape[-2], image.shape[-1])
        self.rows = 0  # evaluated so far
        both = torch.stack([torch.ones(1, *self.size), torch.zeros(1, *self.size)])
        outputs = torch.cat([batch.outputs for batch in masked_forward_passes(model, image, both, removal=removal)])
        self._whole = outputs[:1]
        self.rank = int(target.ahead(self._whole))  # other classes that score at least as high on the whole image
        verdicts = self.judge(outputs)
        if not verdicts.keeps[0]:
            if target.against is None:
                raise ExplainerRefused(f"model {model.name!r} does not find the label on this image")
            raise ExplainerRefused(
                f"model {model.name!r} does not prefer the first class of the contrast on this image",
                hint="swap the two classes",
            )
        self.confidence = float(verdicts.confidence[0])  # on the whole image
        self.trivial = bool(verdicts.keeps[1])  # the target is kept with everything masked

    def alone(self, *masks: Mask) -> Verdicts:
        """Evaluate masks in forward passes of their own."""
        found = evaluated([self], [(0, np.stack(masks))])
        return Verdicts.joined([verdicts for batch in found for verdicts in batch])

    def judge(self, outputs: Tensor) -> Verdicts:
        """Return the verdicts on (n, K) logits, and count the rows."""
        self.rows += len(outputs)
        with torch.inference_mode():
            confidence = self._target.score(outputs, output="probability").double().cpu().numpy()
            keeps = self._target.kept(outputs, self._whole).cpu().numpy()
            runner_up = self._runner_up(outputs).double().cpu().numpy()
        return Verdicts(keeps, confidence, runner_up)

    def _runner_up(self, outputs: Tensor) -> Tensor:
        if self._target.against is not None or outputs.shape[1] < 2:
            return torch.full_like(outputs[:, 0], torch.nan)
        own = self._target.index.to(outputs.device).expand(len(outputs))[:, None]
        other = outputs.scatter(1, own, -torch.inf).argmax(1)
        return ResolvedTarget(index=other).score(outputs, output="probability")


def evaluated(
    evaluators: Sequence[Evaluator], requests: Iterable[tuple[int, Mask]], done: int = 0
) -> Iterator[list[Verdicts]]:
    """Evaluate (n, H, W) masks, each with the number of its evaluator, in one stream of full batches.

    Yields for each batch, in the order of the requests, the verdicts on each run of rows of one evaluator.
    """
    first = evaluators[0]

    def draws() -> Iterator[Tensor]:
        for number, masks in requests:
            flat = torch.from_numpy(masks).flatten(1).to(torch.int16)
            yield torch.cat([torch.full((len(masks), 1), number, dtype=torch.int16), flat], dim=1)

    for batch in masked_forward_passes(first.model, first.image, draws(), removal=_Mixed(evaluators), done=done):
        yield [
            evaluators[number].judge(batch.outputs[start:end])
            for number, start, end in _runs(batch.draws[:, 0].tolist())
        ]


def _runs(numbers: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (value, start, end) of equal neighbours."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[start]:
            yield numbers[start], start, end
            start = end


class _Mixed(Removal):
    """Rows of several images in one forward pass; a row of the "masks" is an evaluator's number and its mask."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self._evaluators = evaluators
        self._images = torch.stack([evaluator.image for evaluator in evaluators])
        removals = [evaluator.removal for evaluator in evaluators]
        self._fills = None
        if all(type(one) is Fill for one in removals):
            self._fills = torch.stack([one.baseline.to(self._images) for one in removals if isinstance(one, Fill)])
        self._deactivation = removals[0] if isinstance(removals[0], Deactivation) else None

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits."""
        numbers = masks[:, 0].long()
        kept = masks[:, 1:].view(-1, 1, *image.shape[1:]).float()
        runs = list(_runs(numbers.tolist()))
        if len(runs) > 1 and self._fills is not None:
            images = torch.where(kept > 0, self._images[numbers], self._fills[numbers])
            return model(images.contiguous(memory_format=torch.channels_last))
        if len(runs) > 1 and self._deactivation is not None:
            return self._deactivation.evaluate(model, self._images[numbers], kept)
        # Any other removal handles one image per call.
        parts = [
            self._evaluators[number].removal(model, self._evaluators[number].image, kept[start:end])
            for number, start, end in runs
        ]
        return torch.cat(parts)
