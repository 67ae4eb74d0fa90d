"""The curves themselves: the model's answers while an image is hidden or shown step by step.

Two curves serve every order: hiding the least relevant pieces first is showing the most relevant ones first, read
in reverse, and the other way round.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import Case, Meta
from xaihub.masking import Removal, make_removal, masked_forward_passes
from xaihub_metrics_curves.order import Direction, Ranking, ranking

__all__ = ["Curves", "Output", "Steps", "curves", "removal"]

Steps = Annotated[
    int, Meta(ge=1, description="Equal steps from the whole image to none of it; each costs one forward pass.")
]
Output = Annotated[Literal["probability", "logit"], Meta(description="What the model's score is.")]


class Curves:
    """What the model says of one image in the order of one map, against one baseline.

    Attributes:
        counts: (points,) pieces that have changed at each point: 0, ..., all.
        shares: (points,) the same as a share of the image's pieces.
    """

    def __init__(self, case: Case, order: Ranking, *, steps: int, baseline: str) -> None:
        """Prepare `steps` equal steps, or one a piece if there are fewer; nothing is asked yet."""
        self._case, self._order, self._baseline = case, order, baseline
        points = min(steps, order.count)
        self.counts = torch.arange(points + 1) * order.count // points
        self.shares = self.counts.double() / order.count
        self._known: dict[Direction, Tensor] = {}

    def logits(self, *directions: Direction) -> list[Tensor]:
        """Return (points, K) logits for each direction; what is missing goes through the model in one stream.

        "hide" starts from the whole image and hides the highest values first; "show" starts from the baseline and
        shows the highest values first.

        Raises:
            ParameterError: No baseline has that name.
        """
        missing = [direction for direction in dict.fromkeys(directions) if direction not in self._known]
        if missing:
            self._ask(missing)
        return [self._known[direction] for direction in directions]

    def scores(self, direction: Direction, output: str) -> Tensor:
        """Return the (points,) scores of the target along one curve, as float64."""
        return self._case.scene.score(self.logits(direction)[0].double(), output=output)

    def _ask(self, directions: list[Direction]) -> None:
        case, inner = self._case, self.counts[1:-1]
        whole = case.scene.logits.detach().float().cpu()[None]
        nothing = _hidden(case, self._baseline)
        batches = masked_forward_passes(
            case.model,
            case.scene.image,
            torch.cat([self._order.draws(inner, direction) for direction in directions]),
            removal=removal(case, self._baseline),
            expand=self._order.masks,
        )
        between = torch.cat([nothing[:0], *(batch.outputs.cpu() for batch in batches)])
        for direction, answers in zip(directions, between.tensor_split(len(directions)), strict=True):
            first, last = (whole, nothing) if direction == "hide" else (nothing, whole)
            self._known[direction] = torch.cat([first, answers, last])


def curves(case: Case, *, steps: int, unit: str, patch: int, baseline: str) -> Curves:
    """Return the case's curves for these parameters; every metric that asks for the same ones gets the same object."""
    order = ranking(case, unit=unit, patch=patch)
    key = ("curves: logits", steps, unit, patch if unit == "patches" else None, *_baseline_key(case, baseline))
    return case.memory.once(key, lambda: Curves(case, order, steps=steps, baseline=baseline))


def removal(case: Case, baseline: str) -> Removal:
    """Return the removal for a baseline, made once an image; noise depends on the case's seed alone.

    Raises:
        ParameterError: No baseline has that name.
    """

    def make() -> Removal:
        # Whichever metric comes first must not decide which noise all of them see.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            return make_removal(baseline, case.model, case.scene.image)

    return case.scene.memory.once(("curves: removal", *_baseline_key(case, baseline)), make)


def _hidden(case: Case, baseline: str) -> Tensor:
    """Return the (1, K) logits of the image with nothing of it left, asked once an image."""

    def ask() -> Tensor:
        mask = torch.zeros(1, 1, *case.scene.image.shape[-2:])
        batches = masked_forward_passes(case.model, case.scene.image, mask, removal=removal(case, baseline))
        return torch.cat([batch.outputs.cpu() for batch in batches])

    return case.scene.memory.once(("curves: hidden", *_baseline_key(case, baseline)), ask)


def _baseline_key(case: Case, baseline: str) -> tuple[str, int | None]:
    return (baseline, case.seed if baseline == "noise" else None)
