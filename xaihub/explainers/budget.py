"""Budgets of explanations: a number of passes, or seconds in which a map is refined."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from xaihub.errors import ParameterError
from xaihub.models.model import Model
from xaihub.params import Parameter, Parametrised, Passes, convert, parameters

E = TypeVar("E", bound="Budgeted")

FIRST = 64  # passes before the first preliminary map
LEAST_STEP = 32  # passes between two looks at the clock
LAST_ROUNDS = 8  # rounds of equal size into which the passes after the first ones are divided
TRIAL_SECONDS, TRIAL_ROWS = 0.2, 4  # of forward passes and rows in each, to learn their speed
SPARE = 0.9  # fraction of a time budget that passes are planned for; masks and maps take the rest
now = time.monotonic
_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|)")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one explanation may cost: a number of passes, or seconds; a backward pass counts as two."""

    passes: int | None = None
    seconds: float | None = None

    def __bool__(self) -> bool:
        """Whether it limits anything."""
        return self.passes is not None or self.seconds is not None

    @classmethod
    def parse(cls, given: Budget | str | float) -> Budget:
        """Read a budget such as 500 (passes), "10s" or "2m".

        Raises:
            ParameterError: It has another form, or is not positive.
        """
        if isinstance(given, Budget):
            return given
        match = _TEXT.fullmatch(str(given).strip().lower())
        number = float(match[1]) if match else 0.0
        if match is None or not number or (not match[2] and number != int(number)):
            raise ParameterError(
                f"budget cannot be {given!r}", hint="give forward passes, as in 500, or seconds, as in 10s"
            )
        if not match[2]:
            return cls(passes=int(number))
        return cls(seconds=number * (1 if match[2] == "s" else 60))

    @property
    def typed(self) -> str:
        """The budget as users type it."""
        return f"{self.passes}" if self.seconds is None else f"{self.seconds!r}s"

    def __str__(self) -> str:
        """The budget in words."""
        return f"{self.passes} passes" if self.seconds is None else f"{self.seconds:g} s"


class Budgeted(Parametrised):
    """A method whose passes may be chosen for a budget.

    Attributes:
        granted: The budget that its passes are chosen for, if there is one (see `within`).
    """

    granted = Budget()

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters, and the budget if it is in seconds: what tells results of one method apart."""
        return {**self.parameters, **({} if self.granted.seconds is None else {"--budget": str(self.granted)})}


def of_passes(method: type) -> Parameter | None:
    """Return the parameter of an explainer's class that is its number of passes; None if it cannot choose it."""
    return next((item for item in parameters(method).values() if item.passes is not None), None)


def within(explainer: E, budget: Budget) -> E:
    """Return a copy of an explainer that keeps to a budget; the explainer itself if it cannot choose its cost.

    Raises:
        ParameterError: The budget is too small, or a parameter that it determines was set as well.
    """
    kind: type = type(explainer)
    item = of_passes(kind)
    if item is None or item.passes is None:
        return explainer
    wanted = item.passes.others
    if budget.passes is not None:
        wanted = item.passes.values(item.name, budget.passes)
    for name in (item.name, *item.passes.others):
        default, given = parameters(kind)[name].default, getattr(explainer, name)
        if given not in (default, wanted.get(name, default)):
            raise ParameterError(
                f"a budget of {budget} and {name}={given} of {explainer.name or kind.__name__} contradict each other",
                hint="give one of them",
            )
    found = copy.copy(explainer)
    found.granted = budget
    return found if budget.passes is None else _set(found, item, budget.passes)


def budgeted(
    explainers: Sequence[E], budget: Budget | str | float | None, note: Callable[[str], None] = lambda _text: None
) -> list[E]:
    """Return copies that keep to a budget, and name to `note` each explainer that does not spend it.

    Raises:
        ParameterError: As `Budget.parse` and `within`.
    """
    return [one for explainer in explainers for one in within_each(explainer, [] if budget is None else [budget], note)]


def within_each(
    explainer: E, budgets: Sequence[Budget | str | float], note: Callable[[str], None] = lambda _text: None
) -> list[E]:
    """Return a copy of an explainer for each budget; the explainer alone without one, or if it cannot choose its cost.

    Raises:
        ParameterError: As `Budget.parse` and `within`.
    """
    parsed = list(dict.fromkeys(map(Budget.parse, budgets)))
    if parsed and (reason := shortfall(explainer, *parsed)):
        note(reason)
    if not parsed or of_passes(type(explainer)) is None:
        return [explainer]
    return [within(explainer, budget) for budget in parsed]


def shortfall(explainer: Budgeted, *budgets: Budget) -> str:
    """Return why an explainer does not spend budgets, in words; empty if it does."""
    item, several = of_passes(type(explainer)), len(budgets) > 1
    named = f"{'budgets' if several else 'budget'} of {', '.join(map(str, budgets))}"
    if item is None or item.passes is None:
        does = "do" if several else "does"
        return f"{explainer.name} cannot choose its number of passes, so the {named} {does} not apply to it"
    if item.passes.maximum:
        return f"{explainer.name} takes the {named} as a maximum and may use less"
    return ""


def expected_passes(explainer: Budgeted) -> float:
    """Return the number of passes that an explainer declares, to sort by; 0 if it declares none, infinity if open."""
    item = of_passes(type(explainer))
    if item is None or item.passes is None:
        return 0.0
    value = getattr(explainer, item.name)
    return math.inf if value is None else float(value * item.passes.each + item.passes.extra)


def least_passes(item: Parameter, passes: Passes) -> int:
    """Return the smallest budget of passes that a parameter allows, which is marked with `passes`."""
    least = max((getattr(mark, "ge", None) or 1 for mark in getattr(item.annotation, "__metadata__", ())), default=1)
    return int(least * passes.each + passes.extra)


def affordable(explainer: E, model: Model) -> E:
    """Return the explainer with as many passes as a budget of seconds allows, from the measured speed of a few."""
    item = of_passes(type(explainer))
    seconds = explainer.granted.seconds
    if item is None or item.passes is None or seconds is None:
        return explainer
    passes = max(math.floor(SPARE * seconds * speed(model)), least_passes(item, item.passes))
    return _set(copy.copy(explainer), item, passes)


def speed(model: Model) -> float:
    """Return forward passes per second without a graph, measured in a fraction of a second."""
    rows = model.runtime.batch_size or TRIAL_ROWS
    inputs = torch.zeros(rows, *model.input_size, device=model.device)
    with torch.inference_mode(), model.autocast(), model.executing():
        model(inputs)  # what is prepared once is prepared before
        started, done = now(), 0
        while not done or now() - started < TRIAL_SECONDS:
            model(inputs).cpu()
            done += rows
    return done / (now() - started)


def rounds(total: int, *, checks: int = 1, first: int = FIRST) -> Iterator[int]:
    """Yield growing numbers of passes up to `total`, after each of which a method that refines its map may stop.

    Without a budget of seconds these are `checks` rounds of about equal size. With one, the first map comes early,
    and the rounds end when the time is up, whether or not `total` has been reached.
    """
    parts = checks if _DEADLINE.get() is None else LAST_ROUNDS
    counts = {max(1, round(total * number / parts)) for number in range(1, parts + 1)}
    while _DEADLINE.get() is not None and first < min(counts):
        counts, first = counts | {first}, 2 * first
    return in_time(sorted(counts))


def in_time(counts: Sequence[int]) -> Iterator[int]:
    """Yield ascending numbers of passes; within a budget of seconds, no more than the time allows.

    A step then takes at most half of the time that is left, as far as it is known, or a few passes.
    """
    deadline, started, last = _DEADLINE.get(), now(), 0
    for count in counts:
        while deadline is not None and 0 < last < count:
            passed = now() - started
            possible = last + int(max(0.0, deadline - started - passed) * last / max(passed, 1e-9))
            if possible <= last:
                return
            last = min(count, possible, last + max(LEAST_STEP, (possible - last) // 2))
            yield last
        if last < count:
            yield count
            last = count


def preview(make: Callable[[], Any]) -> None:
    """Show a preliminary map, made by calling `make`, if somebody is watching; `make` returns what `attribute` does."""
    show = _PREVIEW.get()
    if show is not None:
        show(make())


_DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)
_PREVIEW: ContextVar[Callable[[Any], None] | None] = ContextVar("preview", default=None)


@contextmanager
def spending(budget: Budget, started: float, show: Callable[[Any], None] | None) -> Iterator[None]:
    """Let `rounds` end when a budget of seconds, counted from `started`, is spent; `show` takes preliminary maps."""
    seconds = budget.seconds
    deadline = _DEADLINE.set(None if seconds is None else started + seconds)
    shown = _PREVIEW.set(None if seconds is None else show)
    try:
        yield
    finally:
        _PREVIEW.reset(shown)
        _DEADLINE.reset(deadline)


def _set(explainer: E, item: Parameter, passes: int) -> E:
    assert item.passes is not None  # noqa: S101 - the caller has checked it
    kind: type = type(explainer)
    given = explainer.parameters
    values = {
        name: value
        for name, value in item.passes.values(item.name, passes).items()
        if all(condition.holds(given) for condition in parameters(kind)[name].conditions)
    }
    for name, value in convert(type(explainer), values, who=explainer.name).items():
        setattr(explainer, name, value)
    return explainer
