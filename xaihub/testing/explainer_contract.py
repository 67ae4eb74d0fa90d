"""Checks of what every explainer must do, whatever its method: the form of its result, and what it leaves alone."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.errors import ParameterError
from xaihub.params import convert, parameters
from xaihub.testing.catalogue import NotApplicable, check, require
from xaihub.testing.explainer_subject import ExplainerSubject, same
from xaihub.testing.state import State

ROWS = 3


class _Planted(RuntimeError):
    """An error that the kit raises inside the network."""


def constructor_convention(method: type) -> None:
    """Require keyword arguments with defaults, stored under their own names and nothing else.

    Raises:
        CheckFailed: With what to change.
    """
    arguments = inspect.signature(method).parameters.values()
    for argument in arguments:
        require(
            argument.kind is argument.KEYWORD_ONLY,
            f"the argument {str(argument)!r} of the constructor can be given by position",
            advice="put '*' before the first argument, and take no *args or **kwargs",
        )
        require(
            argument.default is not argument.empty,
            f"the argument {argument.name!r} of the constructor has no default",
            advice="give every argument a default",
        )
    for found in parameters(method).values():
        require(
            bool(found.description),
            f"the parameter {found.name!r} says nowhere what it means",
            advice='annotate it as Annotated[type, Meta(description="...")]',
        )
    defaults = {argument.name: argument.default for argument in arguments}
    try:
        convert(method, defaults)
    except ParameterError as error:
        require(False, f"a default breaks its own limits: {error.message}", advice="change the default or the limits")
    # Objects that are equal to nothing but themselves show whether they are stored as they came.
    marks = {key: object() for key in defaults}
    try:
        stored = dict(vars(method(**marks)))
    except Exception as error:  # the constructor did some work with what it was given
        require(False, f"the constructor works with its arguments ({type(error).__name__}: {error})")
    wrong = [key for key, mark in marks.items() if stored.get(key) is not mark]
    require(not wrong, f"the constructor does not store {', '.join(map(repr, wrong))} as given")
    more = sorted(stored.keys() - marks.keys())
    require(not more, f"the constructor also stores {', '.join(map(repr, more))}")


@check("explainer", advice="let the constructor store each argument under its own name, and do nothing else")
def constructor_only_stores(subject: ExplainerSubject) -> None:
    """The constructor takes keyword arguments with defaults and stores each under its own name, nothing else."""
    constructor_convention(subject.method)


@check("explainer", advice="return (B, C, H, W) or (B, 1, H, W) values at the size of the inputs")
def shape_is_that_of_the_input(subject: ExplainerSubject) -> None:
    """The values have the size of the inputs, with one channel or as many."""
    subject.require_a_call()
    for values, shape in subject.try_on(subject.toy(), subject.images(ROWS)).returned:
        require(isinstance(values, Tensor), f"it returned a {type(values).__name__} instead of a tensor")
        rows, channels, height, width = shape
        fits = values.shape in {(rows, count, height, width) for count in (1, channels)}
        require(fits, f"it returned values of shape {tuple(values.shape)} for inputs {shape}")


@check("explainer", advice="divide by nothing that can be 0, and raise ExplainerRefused where no map exists")
def values_are_finite(subject: ExplainerSubject) -> None:
    """No value is NaN or infinite, not even for an image of one colour."""
    subject.require_a_call()
    for inputs in (subject.images(ROWS), torch.full_like(subject.images(1), 0.3)):
        for values, _ in subject.try_on(subject.toy(), inputs).returned:
            bad = isinstance(values, Tensor) and not bool(torch.isfinite(values).all())
            require(not bad, "some values are NaN or infinite")


@check("explainer", advice="undo every change of the network in a `with` block or in `finally`")
def model_is_left_as_found(subject: ExplainerSubject) -> None:
    """Weights, flags, gradients, hooks, modes and settings of the network are afterwards what they were."""
    model = subject.model
    require(not (change := subject.try_on(model, subject.images(2)).change), f"after `attribute`, {change}")
    # As a user may hand it over: half in training mode, some weights asking for gradients and holding some.
    model.module.train()
    for weight in list(model.module.parameters())[::2]:
        weight.requires_grad_(True)
        weight.grad = torch.ones_like(weight)
    before = State.of(model.module)
    subject.try_on(model, subject.images(2))
    change = before.change(State.of(model.module))
    require(not change, f"after `explain`, {change}")


@check("explainer", advice="undo every change of the network in a `with` block or in `finally`, not in a last line")
def model_is_left_as_found_after_an_error(subject: ExplainerSubject) -> None:
    """The same holds when the network fails halfway: in the first pass, in the last, and on the way back."""
    total = _passes(subject)
    if not total:
        raise NotApplicable("it does not ask the network")
    for at, backward in ((1, False), (total, False), (1, True)):
        model = subject.model
        fuse = _Fuse(at, backward=backward)
        handle = model.module.register_forward_hook(fuse.hook)
        trial = subject.try_on(model, subject.images(1), entering=fuse.arm)
        handle.remove()
        where = "on the way back" if backward else f"in pass {at}"
        require(not trial.change, f"when the network failed {where}, {trial.change}")


@check("explainer", advice="work on a copy of the inputs")
def input_is_left_alone(subject: ExplainerSubject) -> None:
    """The caller's images keep their values, their gradients and their flags."""
    model = subject.model
    inputs = subject.images(2)
    before = inputs.clone()
    subject.try_on(model, inputs)
    require(inputs.equal(before), "the caller's images were changed")
    flags = inputs.requires_grad or inputs.grad is not None
    require(not flags, "the caller's images now ask for gradients", advice="detach the inputs first")


@check(
    "explainer", advice="draw every random number from torch's, NumPy's or Python's global generator, which are seeded"
)
def same_seed_same_map(subject: ExplainerSubject) -> None:
    """Two runs with one seed give one map, bit by bit, whatever random numbers were drawn between."""
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
        "an instance that has explained another image before gives another map",
        advice="keep nothing on the instance between two calls",
    )


@check("explainer", advice="treat each row on its own, and set `stochastic = True` if random numbers are drawn")
def batch_equals_singles(subject: ExplainerSubject) -> None:
    """A batch of images gives the maps that its images give one by one."""
    model = subject.model
    together = subject.values(model, subject.images(ROWS))
    alone = torch.cat([subject.values(model, subject.images(ROWS)[row : row + 1]) for row in range(ROWS)])
    for row in range(ROWS):
        require(same(together[row], alone[row], tolerance=1e-3), f"row {row} of a batch differs from itself alone")


@check("explainer", advice="let the first pass of `attribute` be over the unchanged inputs, or drop `plain_first`")
def first_pass_is_plain(subject: ExplainerSubject) -> None:
    """An explainer that claims `plain_first` begins with a pass over all rows of the unchanged inputs."""
    if not subject.method.plain_first:
        raise NotApplicable("it does not claim `plain_first`")
    model = subject.model
    seen: list[Tensor] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].detach().clone())

    inputs = subject.images(2)
    with_hook = model.module.register_forward_pre_hook(note)
    subject.try_on(model, inputs)
    with_hook.remove()
    rows = inputs[: len(seen[0])] if seen and subject.method.stochastic else inputs
    require(bool(seen) and seen[0].equal(rows), "its first pass was over something else than the inputs")


class _Fuse:
    """Lets the network fail in one of its passes."""

    def __init__(self, at: int, *, backward: bool) -> None:
        self.left = at
        self.backward = backward
        self.armed = False

    def arm(self) -> None:
        self.armed = True

    def hook(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not self.armed:
            return
        self.left -= 1
        if self.left:
            return
        if not self.backward:
            raise _Planted("planted by the conformance kit")
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self._raise)

    def _raise(self, _gradient: Tensor) -> None:
        raise _Planted("planted by the conformance kit")


def _passes(subject: ExplainerSubject) -> int:
    """Count the calls of the network inside `attribute`."""
    model = subject.model
    count = 0
    armed = False

    def arm() -> None:
        nonlocal armed
        armed = True

    def hook(*_: Any) -> None:
        nonlocal count
        count += armed

    handle = model.module.register_forward_hook(hook)
    subject.try_on(model, subject.images(1), entering=arm)
    handle.remove()
    return count
