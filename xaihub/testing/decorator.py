"""The kit in pytest: one test item for each check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any, TypeVar

from xaihub.errors import ParameterError, UnknownName
from xaihub.hub import Hub
from xaihub.testing.catalogue import Check, CheckResult, run
from xaihub.testing.kit import check_names, checks, find, kind_of, subject_of, unknown_check

__all__ = ["Conformance", "conformance"]

T = TypeVar("T", bound=Callable[..., Any])


class _Subject:
    """What all checks of one thing share: what one of them finds out the next one need not."""

    def __init__(self, thing: Any, parameters: Mapping[str, Any]) -> None:
        self._thing = thing
        self._parameters = parameters

    @cached_property
    def ready(self) -> Any:
        """The subject, made when the first check runs."""
        return subject_of(self._thing, _hub(), self._parameters)


class Conformance:
    """One check of one thing; a test calls it."""

    def __init__(self, subject: _Subject, item: Check, expected: str) -> None:
        """Check `item`, which is expected not to pass if `expected` says why."""
        self._subject = subject
        self._item = item
        self._expected = expected

    def __call__(self) -> CheckResult:
        """Run the check; pytest skips what is refused or does not apply.

        Raises:
            AssertionError: It failed, with what to change; or it passed though it was expected not to.
        """
        import pytest

        subject = self._subject.ready
        result = run(self._item, subject, subject.name)
        if self._expected:
            if result.outcome in ("passed", "not applicable"):
                raise AssertionError(f"{result.outcome}, so take {self._item.name!r} off the list: {self._expected}")
            pytest.skip(f"expected: {self._expected} ({result.advice})")
        if result.outcome == "failed":
            raise AssertionError(result.advice)
        if result.outcome != "passed":
            pytest.skip(f"{result.outcome}: {result.advice}")
        return result


def conformance(thing: Any, /, *, expected: Mapping[str, str] | None = None, **parameters: Any) -> Callable[[T], T]:
    """Put an explainer or a metric through the kit: the decorated test becomes one test for each check.

    The test takes an argument `check` and calls it; of a class, each test method does. What the thing refuses, with a
    reason, and what does not apply to it is shown as skipped.

    Args:
        thing: A subclass of `xaihub.Explainer` or `xaihub.Metric`, a record (`ExplainerSpec`, `MetricSpec`,
            `AdapterSpec`, `ModelCard`), or the name of something registered.
        expected: Checks that need not pass, each with the reason. A check that passes all the same is then an error.
        parameters: Parameters of the thing, such as small budgets.

    Raises:
        ParameterError: `thing` cannot be checked, or an expectation has no reason.
        UnknownName: Nothing is called `thing`, or a check in `expected` does not exist.

    Example::

        @conformance(MyExplainer, samples=16)
        def test_my_explainer(check):
            check()
    """
    import pytest  # here, so that the kit works where pytest is not installed

    expected = expected or {}
    for name, reason in expected.items():
        if name not in check_names():
            raise unknown_check(name)
        if len(reason.split()) < 2:
            raise ParameterError(f"the expectation of {name!r} has no reason", hint="say why it need not pass")
    record = _record(thing)
    subject = _Subject(record, parameters)
    items = checks(kind_of(record))
    cases = [Conformance(subject, item, expected.get(item.name, "")) for item in items]
    return pytest.mark.parametrize("check", cases, ids=[item.name for item in items])


def _record(thing: Any) -> Any:
    if not isinstance(thing, str):
        return thing
    found = find(thing, _hub())
    if not found:
        raise UnknownName(f"nothing is called {thing!r}", hint="xaihub list shows every name")
    return found[0]


@cache  # made once: finding every plugin takes a while
def _hub() -> Hub:
    return Hub()
