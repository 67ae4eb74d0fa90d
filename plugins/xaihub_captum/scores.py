"""The target's score as a differentiable function of the input for captum, in batches that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xaihub import Model, ResolvedTarget, forked_generator, without_warnings
from xaihub.masking import baseline_image, batch_rows

# A backward pass keeps every layer's output, about 0.1 GB per image for ResNet-50; batch_rows assumes none.
GRADIENT_ROWS = 32


class Scores(nn.Module):
    """The score of each row: (n, C, H, W) inputs and (n,) class indices become (n,) scores.

    If bounded, rows pass through the network in batches, each with its gradient, so that captum may request any number
    of rows and the result does not depend on the batch size. Otherwise all rows pass together.
    """

    def __init__(self, model: Model, target: ResolvedTarget, *, bounded: bool = True) -> None:
        """Keep the model; its network becomes a submodule, so that captum finds the layers to hook."""
        super().__init__()
        self.module = model.module
        self.model = model
        self.target = target
        # Determined now, since it may take a forward pass, which captum's hooks must not see.
        self.rows = gradient_rows(model) if bounded else None

    def forward(self, inputs: Tensor, *parts: Tensor) -> Tensor:
        """Return (n,) scores; differentiable with respect to `inputs`."""
        target = self.target.of(*parts)
        rows = self.rows
        if rows is None:
            return target.score(self.model(inputs))
        if torch.is_grad_enabled() and inputs.requires_grad:
            scores: Tensor = _RowGradients.apply(inputs, self.model, target, rows)
            return scores
        pieces = [slice(start, start + rows) for start in range(0, len(inputs), rows)]
        return torch.cat([target[piece].score(self.model(inputs[piece])) for piece in pieces])


class _RowGradients(torch.autograd.Function):
    """Scores computed together with their gradient; rows do not interact, so batches may be split anywhere."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, model: Model, target: ResolvedTarget, rows: int) -> Tensor:
        scores: list[Tensor] = []
        slopes: list[Tensor] = []
        for start in range(0, len(inputs), rows):
            part = slice(start, start + rows)
            piece = inputs[part].detach().requires_grad_()
            with torch.enable_grad():
                score = target[part].score(model(piece))
                slopes += torch.autograd.grad(score.sum(), piece)
            scores.append(score.detach())
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(scores)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradients[0].view(-1, 1, 1, 1) * slopes, None, None, None


def gradient_rows(model: Model) -> int:
    """Return the rows per forward and backward pass: the model's batch size, or as many as fit in memory."""
    return model.runtime.batch_size or min(batch_rows(model), GRADIENT_ROWS)


def classes(target: ResolvedTarget) -> tuple[Tensor, ...]:
    """Return the class indices as extra arguments of `Scores`; captum repeats them along with the rows."""
    return target.parts


def baselines(name: str, model: Model, inputs: Tensor) -> Tensor:
    """Return each image's baseline: (B, C, H, W)."""
    rows = []
    for image in inputs:
        # Each image of a batch gets the noise it would get alone.
        with forked_generator():
            rows.append(baseline_image(name, model, image))
    return torch.stack(rows)


def completeness(
    values: Tensor, difference: Tensor, *, tolerance: float, remedy: str
) -> tuple[Tensor, Tensor, list[str]]:
    """Compare the sum of the values with the change in score from the baseline.

    Args:
        values: (B, ...) attributions.
        difference: (B,) score minus baseline score.
        tolerance: Largest relative gap without a warning.
        remedy: Advice for the warning.

    Returns:
        (B,) gaps, (B,) gaps relative to the difference, and the warnings.
    """
    gap = (values.flatten(1).sum(1) - difference).abs()
    relative = gap / difference.abs().clamp(min=1e-9)
    worst = float(relative.max())
    return gap, relative, [_graded(worst, remedy)] if worst > tolerance else []


def _graded(worst: float, remedy: str) -> str:
    """Return the warning about a relative gap; from a quarter on the sizes, from 1 on the whole map is in doubt."""
    if worst < 0.25:
        return f"the values miss the change in score from the baseline by {worst:.1%} of it; {remedy}"
    if worst < 1:
        return f"the sizes of the values are unreliable: they miss the change in score by {worst:.0%} of it; {remedy}"
    return (
        "the values do not explain the score: their sum misses the change in score from the baseline by"
        f" {worst:.3g} times that change; do not use this map; {remedy}"
    )


@contextmanager
def hooked(model: Model) -> Iterator[None]:
    """Let captum hook the network's modules, without its notices to users and without leftovers on the modules."""
    before = {module: set(vars(module)) for module in model.module.modules()}
    try:
        with without_warnings(r"\s*Setting (forward, )?backward hooks"):
            yield
    finally:
        for module, names in before.items():
            # captum removes its hooks, but after an error it leaves the activations stored on modules.
            for name in set(vars(module)) - names:
                delattr(module, name)
