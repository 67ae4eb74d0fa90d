"""Checks of every explainer's contract: its constructor, the form of its result, and no side effects."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.errors import ParameterError
from xaihub.models.snapshot import Snapshot
from xaihub.params import convert, parameters
from xaihub.testing.catalogue import applies, check, require
from xaihub.testing.explainer_subject import ExplainerSubject, Trial, same
from xaihub.testing.metric_subject import MetricSubject

ROWS = 2
DECLARE = "declare each parameter as an annotated class attribute, or store each argument under its own name"


class _Planted(RuntimeError):
    """An error that the kit raises in the network."""


@check("explainer", "metric", advice=DECLARE)
def constructor_only_stores(subject: ExplainerSubject | MetricSubject) -> None:
    """Parameters are keyword-only with defaults and descriptions; the constructor stores them and does nothing else."""
    method = subject.method
    arguments = inspect.signature(method).parameters.values()
    for argument in arguments:
        require(
            argument.kind is argument.KEYWORD_ONLY,
            f"the argument {str(argument)!r} of the constructor is not keyword-only",
            advice="put '*' before the first argument, and take no *args or **kwargs",
        )
        require(
            argument.default is not argument.empty,
            f"the parameter {argument.name!r} has no default",
            advice="give every parameter a default",
        )
    for found in parameters(method).values():
        require(
            bool(found.description),
            f"the parameter {found.name!r} has no description",
            advice='annotate it as Annotated[type, Meta(description="...")]',
        )
    defaults = {argument.name: argument.default for argument in arguments}
    try:
        convert(method, defaults)
    except ParameterError as error:
        require(False, f"a default is out of range: {error.message}", advice="change the default or its limits")
    # Objects that equal only themselves show whether they are stored unchanged.
    marks = {key: object() for key in defaults}
    try:
        stored = dict(vars(method(**marks)))
    except Exception as error:  # the constructor used its arguments
        require(False, f"the constructor uses its arguments ({type(error).__name__}: {error})")
    wrong = [key for key, mark in marks.items() if stored.get(key) is not mark]
    require(not wrong, f"the constructor does not store {', '.join(map(repr, wrong))} unchanged")
    declared = {item.name for item in fields(method)} if is_dataclass(method) else set()
    more = sorted(key for key in stored.keys() - marks.keys() if not (key in declared and key.startswith("_")))
    require(
        not more,
        f"the constructor also stores {', '.join(map(repr, more))}",
        advice="declare private state as `_name: T = field(default=..., init=False)`",
    )


@check("explainer", advice="return (B, C, H, W) or (B, 1, H, W) values of the size of the inputs")
def shape_is_that_of_the_input(subject: ExplainerSubject) -> None:
    """The values have the size of the inputs, with one channel or the same number of channels."""
    subject.require_a_call()
    for values, shape in subject.try_on(subject.toy(), subject.images(ROWS)).returned:
        require(isinstance(values, Tensor), f"it returned {type(values).__name__} instead of a tensor")
        rows, channels, height, width = shape
        fits = values.shape in {(rows, count, height, width) for count in (1, channels)}
        require(fits, f"it returned values of shape {tuple(values.shape)} for inputs {shape}")


@check("explainer", advice="avoid divisions by 0, and raise ExplainerRefused if no map exists")
def values_are_finite(subject: ExplainerSubject) -> None:
    """No value is NaN or infinite, even for an image of a single colour."""
    subject.require_a_call()
    for inputs in (subject.images(ROWS), torch.full_like(subject.images(1), 0.3)):
        for values, _ in subject.try_on(subject.toy(), inputs).returned:
            bad = isinstance(values, Tensor) and not bool(torch.isfinite(values).all())
            require(not bad, "some values are NaN or infinite")


@check("explainer", advice="undo every change of the network in a `with` block or in `finally`")
def model_is_left_as_found(subject: ExplainerSubject) -> None:
    """Weights, flags, gradients, hooks, modes and settings of the network are unchanged afterwards."""
    for toy, trial in subject.trials.items():
        require(not trial.change, f"`attribute` on {toy!r} {trial.change}")
    model = subject.model
    require(not (change := subject.try_on(model, subject.images(2)).change), f"`attribute` {change}")
    # A state that users may pass: in training mode, with gradients enabled and present on some weights.
    model.module.train()
    for weight in list(model.module.parameters())[::2]:
        weight.requires_grad_(True)
        weight.grad = torch.ones_like(weight)
    before = Snapshot(model.module).with_contents()
    subject.try_on(model, subject.images(2))
    require(not (changes := before.changes()), f"`explain` {'; '.join(changes)}")


@check("explainer", advice="undo every change of the network in a `with` block or in `finally`, not in a last line")
def model_is_left_as_found_after_an_error(subject: ExplainerSubject) -> None:
    """The network is also unchanged after it fails in the first pass, in the last pass, or in a backward pass."""
    _, total = _with_fuse(subject, 0)
    applies(total > 0, "it does not run the network")
    for at, backward in ((1, False), (total, False), (1, True)):
        trial, _ = _with_fuse(subject, at, backward=backward)
        where = "in a backward pass" if backward else f"in pass {at}"
        require(not trial.change, f"when the network failed {where}, it {trial.change}")


@check("explainer", advice="work on a copy of the inputs")
def input_is_left_alone(subject: ExplainerSubject) -> None:
    """The caller's images keep their values, their gradients and their flags."""
    model = subject.model
    inputs = subject.images(2)
    before = inputs.clone()
    subject.try_on(model, inputs)
    require(inputs.equal(before), "the caller's images were changed")
    flags = inputs.requires_grad or inputs.grad is not None
    require(not flags, "the caller's images now require gradients", advice="detach the inputs first")


@check("explainer", advice="draw random numbers from torch's, NumPy's or Python's global generator, which are seeded")
def same_seed_same_map(subject: ExplainerSubject) -> None:
    """Two runs with the same seed give bit-identical maps, whatever random numbers are drawn in between."""
    model = subject.model
    first = subject.values(model, subject.images(1), seed=7)
    torch.rand(3)
    second = subject.values(model, subject.images(1), seed=7)
    require(same(first, second), f"two runs with seed 7 differ by up to {float((first - second).abs().max()):.2g}")
    other = subject.make()
    subject.values(model, subject.images(1, seed=3), explainer=other, seed=1)
    again = subject.values(model, subject.images(1), explainer=other, seed=7)
    require(
        same(first, again),
        "an instance that explained another image before gives a different map",
        advice="keep no state on the instance between calls",
    )


@check("explainer", advice="compute each row independently, and set `stochastic = True` if random numbers are drawn")
def batch_equals_singles(subject: ExplainerSubject) -> None:
    """A batch of images gives the same maps as its images one by one."""
    model = subject.model
    together = subject.values(model, subject.images(ROWS))
    alone = torch.cat([subject.values(model, subject.images(ROWS)[row : row + 1]) for row in range(ROWS)])
    for row in range(ROWS):
        require(same(together[row], alone[row], tolerance=1e-3), f"row {row} of a batch differs from the image alone")


@check("explainer", advice="run the unchanged inputs first in `attribute`, or drop `plain_first`")
def first_pass_is_plain(subject: ExplainerSubject) -> None:
    """An explainer that declares `plain_first` begins with a forward pass of all rows of the unchanged inputs."""
    applies(subject.method.plain_first, "it does not declare `plain_first`")
    model, inputs = subject.model, subject.images(2)
    seen: list[Tensor] = []
    handle = model.module.register_forward_pre_hook(lambda _module, given: seen.append(given[0].detach().clone()))
    subject.try_on(model, inputs)
    handle.remove()
    rows = inputs[: len(seen[0])] if seen and subject.method.stochastic else inputs
    require(bool(seen) and seen[0].equal(rows), "its first forward pass was not of the unchanged inputs")


def _with_fuse(subject: ExplainerSubject, at: int, *, backward: bool = False) -> tuple[Trial, int]:
    """Explain with a network that fails in pass `at` (never, if 0); return the outcome and the number of passes."""
    model = subject.model
    inside, passes = False, 0

    @contextmanager
    def entered() -> Iterator[None]:
        nonlocal inside
        inside = True
        yield

    def fail(_output: Tensor) -> None:
        raise _Planted("planted by the conformance kit")

    def look(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal passes
        passes += inside
        if inside and passes == at and not backward:
            fail(output)
        if inside and passes == at and output.requires_grad:
            output.register_hook(fail)

    handle = model.module.register_forward_hook(look)
    trial = subject.try_on(model, subject.images(1), around=entered)
    handle.remove()
    return trial, passes
