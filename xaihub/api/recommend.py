"""Recommend explainers: which are valid for a model, what they cost on this machine, and what was measured for them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from xaihub.api.measured import CONTROLS, Measurement, Measurements, measurements
from xaihub.api.trials import Trial, attempt, trial_input
from xaihub.errors import ParameterError, XaihubError
from xaihub.explainers.budget import SPARE, Budget, expected_passes, of_passes, speed
from xaihub.explainers.explainer import Explainer
from xaihub.hub import Hub
from xaihub.models.model import Model
from xaihub.specs import ExplainerSpec
from xaihub.testing.cost import announced


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One explainer and what is known of it.

    Attributes:
        name: The explainer.
        needs: What it needs of the model.
        trial: How it met the model.
        cost: Its cost as it declares it.
        passes: Passes at the default parameters, a backward pass as two; None if only `cost` says it.
        at_most: `passes` is a maximum.
        seconds: Those passes at the measured speed; None if unknown.
        adjustable: It can choose its number of passes, so that a budget applies to it.
        affordable: Passes within the time, if it is adjustable and a time is given.
        fits: Whether it fits into the time; None if that is unknown or no time is given.
        measured: Its scores in the published table.
    """

    name: str
    needs: Sequence[str]
    trial: Trial
    cost: str
    passes: float | None
    at_most: bool
    seconds: float | None
    adjustable: bool
    affordable: int | None
    fits: bool | None
    measured: Sequence[Measurement]

    @property
    def valid(self) -> bool:
        """Whether it accepts the model."""
        return self.trial.verdict in ("works", "warns")


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What is recommended for one model.

    Attributes:
        model: The model.
        device: Where it runs.
        speed: Forward passes per second.
        seconds: The wanted time per image, or None.
        candidates: Every explainer, the most recommended first; those that are not valid come last.
        table: The published measurements.
        commands: What to try first.
    """

    model: str
    device: str
    speed: float
    seconds: float | None
    candidates: Sequence[Candidate]
    table: Measurements
    commands: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "model": self.model,
            "device": self.device,
            "forward_passes_per_second": self.speed,
            "time": self.seconds,
            "explainers": [
                {
                    **{key: value for key, value in vars(one).items() if key not in ("trial", "measured")},
                    "verdict": one.trial.verdict,
                    "reason": one.trial.reason,
                    "measured": [_plain(row) for row in one.measured],
                }
                for one in self.candidates
            ],
            "measured_with": {key: value for key, value in msgspec.to_builtins(self.table).items() if key != "rows"},
            "commands": list(self.commands),
        }


def parse_time(text: str) -> float:
    """Read a time such as 5s or 2m, in seconds.

    Raises:
        ParameterError: It has another form.
    """
    try:
        seconds = Budget.parse(text).seconds
    except ParameterError:
        seconds = None
    if seconds is None:
        raise ParameterError(f"time cannot be {text!r}", hint="give seconds or minutes, as in 5s or 2m")
    return seconds


def recommend(
    hub: Hub,
    model: Model,
    *,
    seconds: float | None = None,
    options: Sequence[str] = (),
    watch: Callable[[str], None] = lambda _text: None,
) -> Recommendation:
    """Try every explainer on a model, briefly, and rank those that accept it.

    Args:
        hub: Where the explainers are registered.
        model: The model.
        seconds: The wanted time per image, or None.
        options: What selects the model on the command line, for the commands to try.
        watch: Called with a description of each step.

    Returns:
        Valid explainers are ranked by their mean rank in the published table (our choice). Those that a control beats
        by every metric count as not measured, and come after those that are. With a time, those that fit come before
        those that do not, and those that afford as many passes as were measured before those that do not.
    """
    inputs, logits = trial_input(model)
    fast = speed(model)
    found = []
    for spec in hub.explainers:
        if not spec.name.startswith(CONTROLS):
            watch(f"{spec.name} on {model.name}")
            explainer: Explainer | None = None
            try:
                explainer = hub.get_explainer(spec.name)
            except XaihubError as error:
                trial = Trial(verdict="refused", reason=str(error))
            else:
                trial = Trial(verdict="untried", reason=f"it comes from a third party ({spec.plugin})")
                if hub.host.plugin(spec.plugin).builtin:
                    trial = attempt(explainer, spec, model, inputs, logits)
            found.append(_candidate(spec, explainer, trial, fast, seconds))
    table = measurements()
    ranks = {name: rank for name, rank in table.ranks().items() if name not in table.beaten()}
    found.sort(key=lambda one: _order(one, ranks, table.budget))
    return Recommendation(
        model=model.name,
        device=str(model.device),
        speed=fast,
        seconds=seconds,
        candidates=found,
        table=table,
        commands=[_command(one, options, seconds) for one in _first(found)],
    )


def _candidate(
    spec: ExplainerSpec, explainer: Explainer | None, trial: Trial, fast: float, seconds: float | None
) -> Candidate:
    item = None if explainer is None else of_passes(type(explainer))
    adjustable = item is not None and item.passes is not None
    passes, at_most = trial.passes, "at most" in spec.cost
    if passes is None and explainer is not None:
        passes = expected_passes(explainer) if adjustable else None
        if passes == math.inf or (passes is None and "backward" not in spec.cost):
            passes = announced(spec.cost, explainer.parameters)
    wanted = None if passes is None else passes / fast
    affordable = int(SPARE * seconds * fast) if seconds is not None and adjustable else None
    if seconds is None:
        fits = None
    elif affordable is not None:
        fits = affordable > 0
    else:
        fits = None if wanted is None else wanted <= seconds
    return Candidate(
        name=spec.name,
        needs=spec.needs,
        trial=trial,
        cost=spec.cost,
        passes=passes,
        at_most=at_most,
        seconds=wanted,
        adjustable=adjustable,
        affordable=affordable,
        fits=fits,
        measured=measurements().of(spec.name),
    )


def _order(one: Candidate, ranks: dict[str, float], budget: int) -> tuple[bool, bool, bool, bool, float, float, str]:
    """Sort by: valid, fits, measured, affords what was measured, rank in the table, passes, name."""
    fewer = one.affordable is not None and one.affordable < budget
    return (
        not one.valid,
        one.fits is False,
        one.name not in ranks,
        fewer,
        ranks.get(one.name, math.inf),
        math.inf if one.passes is None else one.passes,
        one.name,
    )


def _first(ranked: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield the first valid explainer, and the next that needs something else of the model: a second opinion."""
    valid = [one for one in ranked if one.valid]
    yield from valid[:1]
    others = [one for one in valid[1:] if set(one.needs) != set(valid[0].needs)] or valid[1:]
    yield from others[:1]


def _command(one: Candidate, options: Sequence[str], seconds: float | None) -> str:
    words = ["xaihub", "explain", "IMAGE", *options, "-e", one.name]
    if one.adjustable and seconds is not None:
        words += ["--budget", f"{seconds:g}s"]
    return shlex.join(words)


def _plain(row: Measurement) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(row)
    del found["explainer"]
    return found
