"""Short trials: does an explainer accept a model? They end before the work begins, but after the checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from xaihub.errors import XaihubError
from xaihub.explainers.budget import Budget, least_passes, of_passes, within
from xaihub.explainers.explainer import Explainer
from xaihub.images import load_image, sample_photo
from xaihub.models.backends import EAGER
from xaihub.models.model import Model
from xaihub.specs import ExplainerSpec

MOST_PASSES = 4  # of an explainer that cannot choose its number, such as deeplift with its check of completeness
Verdict = Literal["works", "warns", "refused", "failed", "untried"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How an explainer meets a model.

    Attributes:
        verdict: "works", "warns" (a result with warnings), "refused" (not valid for the model, or not installed),
            "failed" (an error of the method) or "untried" (a plugin of a third party, whose code may do anything).
        reason: The warnings, the refusal or the error, in words.
        passes: Passes of the whole explanation, a backward pass as two; None if the trial was ended before.
    """

    verdict: Verdict
    reason: str = ""
    passes: float | None = None


class _Enough(BaseException):
    """Ends a trial; no method catches it by mistake."""


def trial_input(model: Model) -> tuple[Tensor, Tensor]:
    """Return one row of inputs and the model's outputs for it: the sample photo, or noise if it has another shape."""
    inputs = torch.randn(1, *model.input_size, generator=torch.Generator().manual_seed(0))
    if model.input_size[0] == 3:
        photo = model.prepare(load_image(sample_photo()).rgb)[0].unsqueeze(0)
        inputs = photo if photo.shape == inputs.shape else inputs
    return inputs, model.predict(inputs)


def attempt(explainer: Explainer, spec: ExplainerSpec, model: Model, inputs: Tensor, logits: Tensor) -> Trial:
    """Explain one row until the method has passed its checks.

    A method that can choose its number of passes makes as few as it can, because some refuse only in the end; after
    `MOST_PASSES` forward passes any method is ended. One that needs outputs only has nothing to check.
    """
    if set(spec.needs) == {"black-box"}:
        return Trial(verdict="works")
    item = of_passes(type(explainer))
    fewer = False
    if item is not None and item.passes is not None and not item.passes.maximum:  # a maximum may be too small
        fewer, explainer = True, within(explainer, Budget(passes=least_passes(item, item.passes)))
    runtime = model.runtime
    model.runtime = replace(runtime, batch_size=1, backend=EAGER, progress=None)
    try:
        with _at_most(MOST_PASSES, model):
            (explanation,) = explainer.explain(model, inputs, logits=logits)
    except _Enough:
        return Trial(verdict="works")
    except XaihubError as error:
        return Trial(verdict="refused", reason=str(error))
    except Exception as error:  # any exception of a method is a result here
        return Trial(verdict="failed", reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    finally:
        model.runtime = runtime
    if fewer:  # its warnings are about the number of passes
        return Trial(verdict="works")
    record = explanation.metadata
    spent = record["forward_passes"] + 2 * record["backward_passes"]
    warnings = "; ".join(explanation.warnings)
    return Trial(verdict="warns" if warnings else "works", reason=warnings, passes=spent)


@contextmanager
def _at_most(allowed: int, model: Model) -> Iterator[None]:
    """End what runs inside before the network sees more rows than allowed."""
    seen = 0

    def look(_module: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])
        if seen > allowed:
            raise _Enough

    handle = model.module.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
