"""The check that every parameter has an effect, in every combination that is not refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from torch import Tensor

from xaihub.errors import ParameterError, XaihubError
from xaihub.explainers.pixel_set import PixelSet
from xaihub.metric import Case
from xaihub.params import Parameter, Unless, convert, parameters
from xaihub.testing.catalogue import Refused, applies, check, raised, require
from xaihub.testing.cost import SCALES
from xaihub.testing.explainer_subject import ExplainerSubject, same
from xaihub.testing.metric_subject import KINDS, MetricSubject, toy_case
from xaihub.testing.objective_subject import TOTAL, ObjectiveSubject
from xaihub.testing.planted import planted_case, planted_scenes

Values = Mapping[str, Any]
ADVICE = (
    "use the parameter, remove it, declare when it has an effect with `When(...)` or `Unless(...)` in `Annotated`, or"
    " declare `Execution()` if it changes only the cost"
)
ROUNDS = 3  # epochs of an objective; what begins later has no effect here
ROUNDING = 1e-6  # of the largest value; smaller differences may come from another order of sums
FLOATS = (0.5, 0.02, 0.1, 0.25, 0.75, 0.9, 0.98, 1.0, 2.0, 0.0)
INTEGERS = (1, 2, 3, 4, 6, 8, 16, 40)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run of a method returned.

    Attributes:
        results: Tensors and numbers.
        cost: What the record says about the cost.
        notes: What the reader was told.
    """

    results: Sequence[Tensor | float]
    cost: Any = None
    notes: Sequence[str] = ()

    def differs(self, other: Run) -> bool:
        """Whether the results differ by more than rounding."""
        return len(self.results) != len(other.results) or any(
            not _same(one, two) for one, two in zip(self.results, other.results, strict=True)
        )


# Runs a method with the given parameters on one scene; raises XaihubError if they are refused.
Runner = Callable[[Values], Run]


@check("explainer", "metric", "objective", advice=ADVICE)
def every_parameter_has_an_effect(subject: ExplainerSubject | MetricSubject | ObjectiveSubject) -> None:
    """Each parameter can change the result (with `Execution`: the cost), or is refused or noted in that combination."""
    examples: dict[str, Sequence[Any]] = {}
    if isinstance(subject, ExplainerSubject):
        scenes = [_explains(subject, row) for row in _sensitive(subject)]
        examples["layer"] = [name for name, _ in subject.model.module.named_modules() if name]
    elif isinstance(subject, ObjectiveSubject):
        scenes = [partial(_trains, subject)]
    else:
        applies("cost" not in subject.tags, "it is tagged as measuring cost, which may be time")
        scenes = [_measures(subject, case) for case in _cases(subject)]
    quick, default = subject.make().parameters, subject.given  # small budgets first; some show nothing with them
    found = list(without_effect(subject.method, [quick, default], scenes, examples=examples))
    require(not found, "; ".join(found))


def _sensitive(subject: ExplainerSubject) -> list[int]:
    """Return two images, if possible such that the predicted class changes if everything is masked."""
    inputs = subject.images(16)
    logits = subject.model.predict(torch.cat([inputs, torch.zeros_like(inputs[:1])]))
    changes = logits[:-1].argmax(1) != logits[-1].argmax()
    return changes.int().argsort(descending=True, stable=True)[:2].tolist()


def _explains(subject: ExplainerSubject, row: int) -> Runner:
    model, inputs = subject.model, subject.images(row + 1)[row:]

    def run(values: Values) -> Run:
        trial = subject.try_on(model, inputs, explainer=subject.make(**values))
        if not trial.worked:
            raise XaihubError(raised(trial.error) if trial.error else trial.refusal or trial.rejected)
        (found,) = trial.explanations
        record = found.metadata
        gap = record["completeness_gap"]
        masks = [one.mask.float() for one in found.sets]
        return Run(
            results=[found.values, *found.extras.values(), *masks, *([] if gap is None else [gap])],
            cost=(record["forward_passes"], record["backward_passes"]),
            notes=record["warnings"],
        )

    return run


def _trains(subject: ObjectiveSubject, values: Values) -> Run:
    """Train for a step in each of a few epochs; the results are losses, gradients, and what is saved."""
    changed = ObjectiveSubject(subject.method, spec=subject.spec, parameters=values)
    changed.make().check_parameters()
    try:
        started = changed.start()
    except Refused as error:
        raise XaihubError(str(error)) from error
    objective, network = started.objective, started.network
    results: list[Tensor | float] = []
    for group in objective.groups(network):
        results += [group.lr_scale, -1.0 if group.weight_decay is None else group.weight_decay]
    for epoch in range(1, ROUNDS + 1):
        losses = started.losses(TOTAL * (epoch - 1) // ROUNDS)
        network.zero_grad()
        losses.total.backward()
        gradients = [weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]
        results += [*(term.detach() for term in losses.terms.values()), torch.cat(gradients)]
        with torch.no_grad():
            results += [*started.losses(TOTAL).terms.values()]  # as on validation batches
        objective.epoch_end(network, epoch)
    finished = objective.finish(network)
    return Run(results=[*results, float(finished.wrapped), float(len(finished.network.state_dict()))])


def _cases(subject: MetricSubject) -> list[Case]:
    if subject.homes == ["explained"]:
        return subject.cases(count=2)
    planted = [planted_case(scene, kind) for scene in planted_scenes(2)[1:] for kind in KINDS]
    with_set = toy_case()
    mask = torch.zeros_like(with_set.heat, dtype=torch.bool)
    mask[: len(mask) // 2] = True
    with_set = replace(with_set, explanation=replace(with_set.explanation, sets=(PixelSet(mask=mask),)))
    return [*planted, toy_case(), toy_case(of_noise=True), with_set]


def _measures(subject: MetricSubject, case: Case) -> Runner:
    def run(values: Values) -> Run:
        try:
            found, counts = subject.make_default(**values).measure(case)
        except XaihubError:
            raise
        except Exception as error:  # the plugin fence: other checks report what it does with such values
            raise XaihubError(raised(error)) from error
        curve = [] if found.curve is None else [number for axis in found.curve for number in axis]
        return Run(results=[found.value, *curve], cost=(counts.forward_passes, counts.backward_passes))

    return run


def without_effect(
    method: type,
    bases: Sequence[Values],
    scenes: Sequence[Runner],
    *,
    examples: Mapping[str, Sequence[Any]] | None = None,
) -> Iterator[str]:
    """Yield one finding per parameter and combination in which it has no effect and is not refused or noted.

    Args:
        method: The class.
        bases: Values from which one parameter is changed at a time; the first should be quick.
        scenes: What runs the method, one runner per input.
        examples: Values of text parameters, in addition to those in `Meta(examples=[...])`.
    """
    trials = _Trials(method, bases, scenes, examples or {})
    applies(bool(trials.known), "it has no parameters")
    trials.require_a_run()
    for item in trials.known.values():
        for context in trials.contexts(item):
            if trials.works(context) and not trials.has_effect(item, context):
                where = ", ".join(f"{name}={value}" for name, value in context.items())
                yield f"the parameter {item.shown!r} has no effect{f' with {where}' if where else ''}"


class _Trials:
    """Runs of one method with parameters changed; results are kept."""

    def __init__(
        self, method: type, bases: Sequence[Values], scenes: Sequence[Runner], examples: Mapping[str, Sequence[Any]]
    ) -> None:
        self.method = method
        self.known = parameters(method)
        defaults = {name: item.default for name, item in self.known.items()}
        self.bases = [{**defaults, **base} for base in bases]
        self.scenes = scenes
        self.examples = examples
        self._runs: dict[tuple[str, int], Run | XaihubError] = {}
        # By parameter, what last showed its effect: the base and the scene, and the value.
        self._telling: dict[str, tuple[tuple[int, int], Any]] = {}

    def contexts(self, item: Parameter) -> Iterator[dict[str, Any]]:
        """Yield the combinations in which a parameter is tried: the defaults, and each value of each choice."""
        plain = self._enabling(item, self.bases[0])
        if plain is None:
            return
        yield plain
        for other in self.known.values():
            optional = type(None) in _kinds(other.annotation) and other.name not in SCALES  # a small budget hides much
            if other.name == item.name or not (self._has_few(other) or optional):
                continue
            around = self._enabling(other, self.bases[0])
            if around is None:
                continue
            values = self._others(other, self.bases[0][other.name])
            for value in values[: None if self._has_few(other) else 1]:
                context = {**around, other.name: value}
                more = self._enabling(item, {**self.bases[0], **context})
                if more is not None and not more.keys() & context.keys():
                    yield {**context, **more}

    def require_a_run(self) -> None:
        """Omit values with which the method does not run; raise `Refused` if there are no others."""
        refusals = [self._run(base, 0) for base in self.bases]
        self.bases = [base for base, found in zip(self.bases, refusals, strict=True) if isinstance(found, Run)]
        if not self.bases:
            raise Refused(str(refusals[0]))

    def works(self, context: Values) -> bool:
        """Whether the method runs at all in this combination."""
        return any(isinstance(self._run({**base, **context}, 0), Run) for base in self.bases)

    def has_effect(self, item: Parameter, context: Values) -> bool:
        """Whether some value of the parameter changes the result, or is refused or noted.

        With the other parameters at their defaults, a refusal counts only if every value is refused.
        """
        silent = refused = False
        # What showed an effect in another combination comes first; most often nothing else is tried then.
        place, telling = self._telling.get(item.name, ((0, 0), None))
        places = [(0, scene) for scene in range(len(self.scenes))] + [(base, 0) for base in range(1, len(self.bases))]
        for number, scene in sorted(places, key=lambda one: one != place):
            values = {**self.bases[number], **context}
            before = self._run(values, scene)
            others = self._others(item, values[item.name]) if isinstance(before, Run) else []
            for value in sorted(others, key=lambda one: one != telling):
                after = self._run({**values, item.name: value}, scene)
                if not isinstance(after, Run):
                    refused = True
                elif _noted(item, after) or _has_changed(item, before, after):
                    self._telling[item.name] = (number, scene), value
                    return True
                else:
                    silent = True
            if refused and context:
                return True
        return not silent

    def _run(self, values: Values, scene: int) -> Run | XaihubError:
        key = (repr(sorted(values.items(), key=lambda pair: pair[0])), scene)
        if key not in self._runs:
            try:
                self._runs[key] = self.scenes[scene](values)
            except XaihubError as error:
                self._runs[key] = error
        return self._runs[key]

    def _enabling(self, item: Parameter, values: Values) -> dict[str, Any] | None:
        """Return the values of other parameters with which this one has an effect, or None if none was found."""
        changed: dict[str, Any] = {}
        for condition in item.conditions:
            if condition.holds({**values, **changed}):
                continue
            for name, allowed in condition.values.items():
                other = self.known[name]
                inside = [value for value in allowed if value != values[name]]
                outside = [value for value in self._others(other, values[name]) if value not in allowed]
                found = outside if isinstance(condition, Unless) else inside
                if not found:
                    return None
                changed |= {name: found[0]} | (self._enabling(other, values) or {})
                if condition.holds({**values, **changed}):
                    break
        return changed

    def _has_few(self, item: Parameter) -> bool:
        return bool(item.examples) or any(
            kind is bool or get_origin(kind) is Literal for kind in _kinds(item.annotation)
        )

    def _others(self, item: Parameter, value: Any) -> list[Any]:
        """Return valid values that differ from `value`."""
        candidates = [*item.examples, *self.examples.get(item.name, ())]
        for kind in _kinds(item.annotation):
            candidates += _candidates(kind, value)
        return [one for one in candidates if one != value and self._is_valid(item, one)]

    def _is_valid(self, item: Parameter, value: Any) -> bool:
        try:
            convert(self.method, {item.name: value})
        except ParameterError:
            return False
        return True


def _candidates(kind: Any, value: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if kind is bool:
        return [True, False]
    if kind is type(None):
        return [None]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return [*([value * 2, value // 2, value + 1, value - 1] if is_number else []), *INTEGERS]
    if kind is float:
        return [*([value * 2, value / 2] if is_number else []), *FLOATS]
    return []


def _kinds(annotation: Any) -> list[Any]:
    """Return the types of an annotation, without constraints and unions."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]


def _has_changed(item: Parameter, before: Run | XaihubError, after: Run) -> bool:
    return isinstance(before, Run) and (after.differs(before) or (item.execution and after.cost != before.cost))


def _noted(item: Parameter, run: Run) -> bool:
    return any(item.shown in note and "no effect" in note for note in run.notes)


def _same(one: Tensor | float, two: Tensor | float) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return same(one.float(), two.float(), tolerance=ROUNDING)
    return math.isclose(float(one), float(two), rel_tol=ROUNDING, abs_tol=1e-12)
