"""The question that is asked of every mask: does the model still say the same?"""

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
from xaihub_convad.partition import Mask

__all__ = ["Question", "Verdicts", "answers"]

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
    """One image, one target, one way to hide pixels.

    Attributes:
        model: The model.
        image: (C, H, W) input.
        removal: What hidden pixels become.
        size: (H, W).
        rank: How many classes score at least as high as the target on the whole image.
        confidence: The target's confidence on the whole image.
        trivial: The target is kept with everything hidden.
        asked: Rows sent through the network so far.
    """

    def __init__(self, model: Model, image: Tensor, target: ResolvedTarget, removal: Removal) -> None:
        """Ask about the whole image, and about none of it.

        Raises:
            ExplainerRefused: A contrast that the model does not decide for the target.
        """
        self.model, self.image, self.removal = model, image, removal
        self._target = target
        self.size = (image.shape[-2], image.shape[-1])
        self.asked = 0
        self.rank = 0
        whole = torch.stack([torch.ones(1, *self.size), torch.zeros(1, *self.size)])
        outputs = torch.cat([batch.outputs for batch in masked_forward_passes(model, image, whole, removal=removal)])
        self.rank = int(self._ahead(outputs[:1]))
        verdicts = self.judge(outputs)
        if not verdicts.keeps[0]:
            raise ExplainerRefused(
                f"model {model.name!r} does not prefer the first class of the contrast on this image",
                hint="swap the two classes",
            )
        self.confidence = float(verdicts.confidence[0])
        self.trivial = bool(verdicts.keeps[1])

    def alone(self, mask: Mask) -> Verdicts:
        """Ask about one mask in a forward pass of its own."""
        return next(answers([self], [(0, mask[None])]))[0][1]

    def judge(self, outputs: Tensor) -> Verdicts:
        """Return the verdicts on (n, K) logits, and count the rows."""
        self.asked += len(outputs)
        with torch.inference_mode():
            confidence = self._target.score(outputs, output="probability").double().cpu().numpy()
            keeps = self._ahead(outputs) <= self.rank if self._target.against is None else self._lead(outputs)
        return Verdicts(keeps.cpu().numpy(), confidence)

    def _ahead(self, outputs: Tensor) -> Tensor:
        """Count the other classes that score at least as high: (n,)."""
        own = outputs[:, self._target.index.to(outputs.device)]
        return (outputs >= own).sum(1) - 1

    def _lead(self, outputs: Tensor) -> Tensor:
        return self._target.score(outputs) > 0


def answers(
    questions: Sequence[Question], requests: Iterable[tuple[int, Mask]], done: int = 0
) -> Iterator[list[tuple[int, Verdicts]]]:
    """Ask (n, H, W) masks of numbered questions in one stream of full batches.

    Yields for each batch, in the order of the requests, runs of rows of one question with their verdicts.
    """
    first = questions[0]
    removal = _Mixed(questions)

    def draws() -> Iterator[Tensor]:
        for number, masks in requests:
            flat = torch.from_numpy(masks).flatten(1).to(torch.int16)
            yield torch.cat([torch.full((len(masks), 1), number, dtype=torch.int16), flat], dim=1)

    for batch in masked_forward_passes(first.model, first.image, draws(), removal=removal, done=done):
        yield [
            (number, questions[number].judge(batch.outputs[start:end]))
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
    """Rows of several images in one forward pass; a row of the "masks" is a question's number and its mask."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self._images = torch.stack([question.image for question in questions])
        removals = [question.removal for question in questions]
        self._fills = None
        if all(type(one) is Fill for one in removals):
            self._fills = torch.stack([one.baseline.to(self._images) for one in removals if isinstance(one, Fill)])
        self._deactivation = removals[0] if isinstance(removals[0], Deactivation) else None

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits."""
        numbers = masks[:, 0].long()
        kept = masks[:, 1:].view(-1, 1, *image.shape[1:]).float()
        if len(self._questions) == 1 or bool((numbers == numbers[0]).all()):
            question = self._questions[int(numbers[0])]
            return question.removal(model, question.image, kept)
        if self._fills is not None:
            images = torch.where(kept > 0, self._images[numbers], self._fills[numbers])
            return model(images.contiguous(memory_format=torch.channels_last))
        if self._deactivation is not None:
            return self._deactivation.forward(model.module, self._images[numbers], kept, call=model)
        # Another way to hide pixels knows one image a call.
        parts = [
            self._questions[number].removal(model, self._questions[number].image, kept[start:end])
            for number, start, end in _runs(numbers.tolist())
        ]
        return torch.cat(parts)
