"""The base class of explainers: authors write `attribute`; checks, seeding, counting and the record are done here."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xaihub.errors import ExplainerRefused, ParameterError
from xaihub.explainers import budget
from xaihub.explainers.budget import Budgeted, affordable, spending
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.notes import notes
from xaihub.explainers.pixel_set import PixelSet
from xaihub.explainers.target import LateTarget, ResolvedTarget, Target
from xaihub.models.model import Model
from xaihub.models.passes import MASKED_ROWS
from xaihub.notices import caught
from xaihub.randomness import drawing, seeded
from xaihub.records import plain

_NO_GRADIENT = re.compile(
    "does not require grad|appears to not have been used in the graph|not implemented for 'Q|derivative for .* is not"
    " implemented|None of the .*requires? grad",
)


@dataclass(kw_only=True)
class Attribution:
    """What `attribute` may return instead of a bare tensor.

    Attributes:
        values: (B, C, H, W) or (B, 1, H, W), at the size of the inputs.
        completeness_gap: (B,) |sum of values - (score - baseline score)|, where the method claims them equal.
        layer: The layer that was used, with the reason.
        sets: For each of the B rows its sets of pixels, the main one first; empty if the method returns none.
        extras: Further tensors of the result by name: (B, ...) each.
        details: Further facts for the record, JSON types only.
        warnings: What the reader of the map must know.
        forward_passes: Rows evaluated per image, where several images shared batches (default: the total, divided
            equally).
    """

    values: Tensor
    completeness_gap: Tensor | None = None
    layer: str | None = None
    sets: Sequence[Sequence[PixelSet]] = ()
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    forward_passes: float | None = None


class Explainer(Budgeted, ABC):
    """A method that attributes a model's output to the pixels of its input.

    Declare each parameter once, in the class body: `steps: Annotated[int, Meta(ge=1, description="...")] = 50`. The
    constructor, the command line, `xaihub show`, the checks and the record of every result follow from it.

    Attributes:
        stochastic: The method draws random numbers. Each image is then explained separately from the same seed, so that
            its result does not depend on the rest of the batch.
        together: A stochastic `attribute` receives all rows at once for batching, but must reproduce each row's
            single-image random draws.
        parallel: All random numbers come from `xaihub.current_generator()`, and no state of the process is changed,
            so that several threads may explain different models at the same time. Explainers without it run one at a
            time, with the global generators seeded; so must one that runs another explainer.
        class_agnostic: The result does not depend on the target.
        completeness: The values are meant to sum to the score minus the baseline's score.
        plain_first: The first forward pass of `attribute` is over all rows of the unmodified inputs, so it can
            determine the target; for other explainers the base class runs this pass before.

    Example::

        class Gradient(Explainer):
            def attribute(self, model, inputs, target):
                inputs.requires_grad_()
                return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]
    """

    stochastic: ClassVar[bool] = False
    together: ClassVar[bool] = False
    parallel: ClassVar[bool] = False
    class_agnostic: ClassVar[bool] = False
    completeness: ClassVar[bool] = False
    plain_first: ClassVar[bool] = False
    noun: ClassVar[str] = "explainer"
    variant = ""  # set by the hub, as the name is, from the explainer's record

    @abstractmethod
    def attribute(
        self, model: Model, inputs: Tensor, target: ResolvedTarget
    ) -> Tensor | Attribution | list[Attribution]:
        """Attribute the target's score to the inputs.

        Args:
            model: Callable on (B, C, H, W); returns (B, K) logits.
            inputs: (B, C, H, W) in the model's units; a private copy.
            target: `target.score(logits)` is (B,).

        Returns:
            (B, C, H, W) or (B, 1, H, W) values; positive values support the target. Or an `Attribution`, or one
            `Attribution` per row where each row has its own record.

        Raises:
            ExplainerRefused: The method is not valid for this model.
        """

    def explain(
        self,
        model: Model,
        inputs: Tensor,
        target: Target | str | int | None = None,
        *,
        seed: int = 0,
        logits: Tensor | None = None,
    ) -> list[Explanation]:
        """Explain each row of `inputs` and return one `Explanation` per row.

        The model and the global random state are restored in any case. It may be called from several threads, with one
        model or several, and under `torch.no_grad()` or `torch.inference_mode()`.

        Args:
            model: The model.
            inputs: (B, C, H, W) in the model's units.
            target: The class to explain; the predicted class by default.
            seed: Fixes every random choice.
            logits: (B, K) outputs of `model` for `inputs`, if known; then no pass is made to fix the target.

        Raises:
            ParameterError: A parameter is out of range, the target does not exist, or `inputs` or `logits` has the
                wrong shape.
            ExplainerRefused: The method is not valid for this model, or its result is malformed or not finite.
            ModelError: The model's class scores are not finite, are random, or depend on the rest of the batch.
            PluginError: `attribute` changed the network or the process and did not undo it.
        """
        who = self.check_parameters()
        if inputs.ndim != 4 or not len(inputs) or inputs.shape[1] != model.input_size[0]:
            raise ParameterError(
                f"inputs have the shape {tuple(inputs.shape)}",
                hint=f"give one or more rows: (B, {', '.join(map(str, model.input_size))})",
            )
        if logits is not None and (logits.ndim != 2 or len(logits) != len(inputs)):
            raise ParameterError(f"logits have the shape {tuple(logits.shape)}", hint=f"expected ({len(inputs)}, K)")
        wanted = Target.parse(target, model.classes, model.outputs)
        with model.untouched(parallel=self.parallel, by=self):
            model.check_rows()
            if logits is None and self.plain_first:
                return self._explain(model, inputs, LateTarget(wanted, model.outputs), None, seed, who)
            logits = model.predict(inputs) if logits is None else model.checked(logits, rows=len(inputs))
            resolved = wanted.resolve(logits, model.outputs)
            explanations: list[Explanation] = []
            step = 1 if self.stochastic and not (self.together or self.plain_first) else len(inputs)
            for start in range(0, len(inputs), step):
                rows = slice(start, start + step)
                explanations += self._explain(model, inputs[rows], resolved[rows], logits[rows], seed, who)
        return explanations

    def _explain(
        self, model: Model, inputs: Tensor, target: ResolvedTarget, logits: Tensor | None, seed: int, who: str
    ) -> list[Explanation]:
        """Run `attribute` once and build the explanations; without `logits` its first forward pass provides them."""
        started = budget.now()
        # requires_grad set by the method on its copy must not reach the caller's tensor.
        private = inputs.detach().to(model.device, torch.float32, copy=True)
        target, masked, rows = target.noting(len(inputs)), MASKED_ROWS.get(), len(inputs)
        method = affordable(self, model)

        def explanations(part: Tensor | Attribution, own: slice, heard: list[str]) -> list[Explanation]:
            known = target.logits if isinstance(target, LateTarget) else logits
            if known is None:
                raise ExplainerRefused(f"{who} declares plain_first but never ran the model on the unmodified image")
            record = {
                **method._record(model, who, seed),
                "forward_passes": counts.forward_passes / rows,  # excludes the pass that only determined the target
                "backward_passes": counts.backward_passes / rows,
                "seconds": round((budget.now() - started) / rows, 6),
                "warnings": [*heard, *notes(model, known, self.parameters.get("output"))],
            }
            # Of a gradient method, equal scores of a few points say nothing.
            constant = target.constant(known) if MASKED_ROWS.get() > masked else [""] * rows
            return _explanations(model, part, inputs[own], target[own], known[own], constant[own], record)

        def show(part: Tensor | Attribution) -> None:
            if model.runtime.preview is not None:
                for explanation in explanations(part, slice(0, rows), []):
                    model.runtime.preview(explanation)

        with (
            model.counting() as counts,
            _first_pass(model, target, rows),
            drawing(seed) if self.parallel else seeded(seed),
            model.autocast(),
            torch.enable_grad(),
            caught() as heard,
            _differentiable(model, who),
            spending(self.granted, started, show),
        ):
            result = method.attribute(model, private, target)
        parts = result if isinstance(result, list) else [result]
        if isinstance(result, list) and len(result) != rows:
            raise ExplainerRefused(f"{who} returned {len(result)} results for {rows} rows")
        step = rows // len(parts)
        pieces = (slice(number * step, (number + 1) * step) for number in range(len(parts)))
        return [one for part, own in zip(parts, pieces, strict=True) for one in explanations(part, own, heard)]

    def _record(self, model: Model, who: str, seed: int) -> dict[str, Any]:
        """Return what is needed to reproduce a result."""
        return {
            "model": model.name,
            "outputs": str(model.outputs),
            **({"head": model.head} if model.head else {}),
            **({"code": dict(model.code)} if model.code else {}),
            "weights_sha256": model.weights_hash,
            "preprocessing": dict(model.preprocessing.description),
            "explainer": who,
            "variant": self.variant,
            "plugin": self.origin.record(),
            "parameters": self.parameters,
            **({"budget": str(self.granted)} if self.granted else {}),
            "seed": seed,
            "device": str(model.device),
            **model.executor.record(model),
            "versions": {name: _version(name) for name in ("xaihub", "torch", "timm")},
        }


def _explanations(
    model: Model,
    result: Tensor | Attribution,
    inputs: Tensor,
    target: ResolvedTarget,
    logits: Tensor,
    constant: list[str],
    record: dict[str, Any],
) -> list[Explanation]:
    """Check what `attribute` returned for these rows and build each row's explanation."""
    who = record["explainer"]
    if not isinstance(result, Attribution):
        result = Attribution(values=result)
    if not isinstance(result.values, Tensor):
        raise ExplainerRefused(f"{who} returned a {type(result.values).__name__} instead of a tensor")
    values = result.values.detach().float().cpu()
    rows, _, height, width = inputs.shape
    if values.shape not in {(rows, channels, height, width) for channels in (1, inputs.shape[1])}:
        raise ExplainerRefused(f"{who} returned shape {tuple(values.shape)} for inputs {tuple(inputs.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ExplainerRefused(f"{who} returned NaN or infinite values on {model.name!r}")
    if any(constant):  # what a method makes of a constant score is rounding, or the density of its own masks
        values = values * torch.tensor([not same for same in constant])[:, None, None, None]
    gaps = None if result.completeness_gap is None else result.completeness_gap.detach().float().cpu()
    if gaps is not None and gaps.shape != (rows,):
        raise ExplainerRefused(f"{who} returned a completeness gap of shape {tuple(gaps.shape)} for {rows} rows")
    extras, sets = _extras(result.extras, rows, who), _sets(result.sets, rows, (height, width), who)
    record = {
        **record,
        "layer": None if result.layer is None else str(result.layer),
        "details": plain(dict(result.details)),
        "warnings": list(dict.fromkeys([*map(str, result.warnings), *record["warnings"]])),
    }
    if result.forward_passes is not None:
        record["forward_passes"] = result.forward_passes
    return [
        Explanation.of_row(
            row,
            values=values,
            logits=logits,
            target=target,
            classes=model.classes,
            metadata={
                **record,
                "warnings": [*record["warnings"], *_constant(constant[row])],
                "completeness_gap": None if gaps is None else float(gaps[row]),
            },
            extras=extras,
            sets=() if constant[row] else sets[row],
        )
        for row in range(rows)
    ]


def _constant(score: str) -> list[str]:
    text = f"the score is the same, {score}, for the image and all masked images, so the map is empty"
    return [text] if score else []


def _extras(extras: Mapping[str, Tensor], rows: int, who: str) -> dict[str, Tensor]:
    """Check the further tensors and return them on the CPU; bool becomes uint8."""
    for name, tensor in extras.items():
        if not isinstance(tensor, Tensor) or tensor.ndim < 1 or len(tensor) != rows:
            raise ExplainerRefused(f"{who} did not return a tensor of {rows} rows as {name!r}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ExplainerRefused(f"{who} returned NaN or infinite values as {name!r}")
    kept = {name: tensor.detach().cpu() for name, tensor in extras.items()}
    return {name: tensor.byte() if tensor.dtype is torch.bool else tensor for name, tensor in kept.items()}


def _sets(sets: Sequence[Sequence[PixelSet]], rows: int, size: tuple[int, int], who: str) -> list[tuple[PixelSet, ...]]:
    """Check each row's sets of pixels and return them with their masks on the CPU."""
    if not sets:
        return [()] * rows
    if len(sets) != rows or not all(isinstance(one, Sequence) for one in sets):
        raise ExplainerRefused(f"{who} did not return one sequence of sets per row ({rows})")
    for one in (one for row in sets for one in row):
        if not isinstance(one, PixelSet):
            raise ExplainerRefused(f"{who} returned a {type(one).__name__} instead of a PixelSet")
        if not isinstance(one.mask, Tensor) or one.mask.dtype is not torch.bool or one.mask.shape != size:
            raise ExplainerRefused(f"{who} returned a set whose mask is not a bool tensor of shape {size}")
    return [tuple(replace(one, mask=one.mask.detach().cpu()) for one in row) for row in sets]


@contextmanager
def _differentiable(model: Model, who: str) -> Iterator[None]:
    """Turn autograd's errors about a missing gradient into a refusal."""
    try:
        yield
    except RuntimeError as error:
        if not _NO_GRADIENT.search(str(error)):
            raise
        why = getattr(model.module, "black_box", "")  # why it has no gradients
        raise ExplainerRefused(
            f"{who} needs gradients, and {model.name!r} cannot be differentiated down to the input{why and ': '}{why}",
            hint="use a black-box explainer such as rise",
        ) from error


@contextmanager
def _first_pass(model: Model, target: ResolvedTarget, rows: int) -> Iterator[None]:
    """Let the network's first outputs determine a late target."""
    if not isinstance(target, LateTarget):
        yield
        return

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if target.logits is None:
            target.see(model.checked(output, rows=rows))

    handle = model.module.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


@cache  # reading a distribution's metadata takes milliseconds
def _version(name: str) -> str:
    return metadata.version(name)
