"""The catalogue of conformance checks: declaring, running and reporting them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from xaihub.errors import MissingExtra, XaihubError
from xaihub.specs import MethodSpec

Kind = Literal["explainer", "metric", "objective", "baseline", "head", "adapter", "model", "plugin"]
Outcome = Literal["passed", "failed", "refused", "not applicable"]
S = TypeVar("S")
R = TypeVar("R", bound=MethodSpec)


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check of one subject.

    Attributes:
        subject: The name of the subject.
        kind: "explainer", "metric", "objective", "baseline", "head", "adapter", "model" or "plugin".
        check: The name of the check.
        outcome: "passed", "failed", "refused" (by the subject, with a reason) or "not applicable".
        advice: The finding and what to change, if it failed; the reason, if it was refused or not applicable.
        seconds: Run time.
        plugin: The plugin that registered the subject, if it is known.
    """

    subject: str
    kind: Kind
    check: str
    outcome: Outcome
    advice: str = ""
    seconds: float = 0.0
    plugin: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check.

    Attributes:
        name: Its name, which states what is true if it passes.
        kind: The kind of subject.
        requirement: What must be true, as one sentence.
        advice: What the author of a failing plugin should change.
        function: Takes a subject; raises if the check does not pass.
    """

    name: str
    kind: Kind
    requirement: str
    advice: str
    function: Callable[[Any], None]


class CheckFailed(AssertionError):
    """The finding, and what to change if that differs from the check's own advice."""

    def __init__(self, found: str, advice: str = "") -> None:
        self.found, self.advice = found, advice


class NotApplicable(Exception):
    """The check does not apply, with the reason."""


class Refused(Exception):
    """The subject refused, with the reason."""


_CHECKS: dict[tuple[Kind, str], Check] = {}


def check(*kinds: Kind, advice: str) -> Callable[[Callable[[S], None]], Callable[[S], None]]:
    """Add a function to the catalogue under its own name; its docstring's first line states the requirement."""

    def enter(function: Callable[[S], None]) -> Callable[[S], None]:
        name = function.__name__
        requirement = (function.__doc__ or "").partition("\n")[0]
        for kind in kinds:
            _CHECKS[kind, name] = Check(name=name, kind=kind, requirement=requirement, advice=advice, function=function)
        return function

    return enter


def catalogue(kind: Kind, only: Iterable[str] = ()) -> Iterator[Check]:
    """Yield the checks of a kind in the order of their declaration, or those named in `only`."""
    wanted = set(only)
    yield from (item for (of, name), item in _CHECKS.items() if of == kind and (not wanted or name in wanted))


def require(holds: bool, found: str, *, advice: str = "") -> None:
    """Raise `CheckFailed` with the finding, and with advice that differs from the check's own, unless `holds`."""
    if not holds:
        raise CheckFailed(found, advice)


def applies(holds: bool, reason: str) -> None:
    """Raise `NotApplicable` with the reason unless `holds`."""
    if not holds:
        raise NotApplicable(reason)


def run(item: Check, subject: Any, name: str) -> CheckResult:
    """Run one check and return its result; an unexpected exception is a failure."""
    started = time.perf_counter()
    outcome: Outcome = "passed"
    text = ""
    try:
        item.function(subject)
    except NotApplicable as error:
        outcome, text = "not applicable", str(error)
    except MissingExtra as error:  # a problem of this environment, not of the plugin
        outcome, text = "not applicable", str(error)
    except Refused as error:
        outcome, text = "refused", str(error)
    except CheckFailed as error:
        outcome, text = "failed", f"{error.found}: {error.advice or item.advice}"
    except XaihubError as error:
        outcome, text = "failed", f"{error}: {item.advice}"
    except BaseException as error:  # the plugin fence: it may also exit, or raise something else
        if is_ctrl_c(error):
            raise
        outcome, text = "failed", f"it raised {raised(error)}: {item.advice}"
    seconds = time.perf_counter() - started
    return CheckResult(
        subject=name, kind=item.kind, check=item.name, outcome=outcome, advice=" ".join(text.split()), seconds=seconds
    )


def is_ctrl_c(error: BaseException) -> bool:
    """Whether the user stopped the program; in a worker, which ignores that signal, a plugin raised the error."""
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def raised(error: BaseException) -> str:
    """Return an exception's type and the beginning of its message on one line."""
    try:
        text = " ".join(str(error).split())[:200]
    except Exception:  # it is a plugin's exception, with a method of its own
        text = "its message cannot be read"
    return f"{type(error).__name__} ({text})"


def require_record(spec: R | None) -> R:
    """Return a record, which must have a one-line summary and a cost; without one, the check does not apply."""
    if spec is None:
        raise NotApplicable("it is not registered, so it has no record")
    for name in ("summary", "cost"):
        require(bool(getattr(spec, name)), f"its record has no {name}")
    require(len(spec.summary.splitlines()) == 1, "its summary is longer than one line")
    return spec
