"""The kit in pytest: one test item for each check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from xaihub.errors import ParameterError, UnknownName
from xaihub.hub import Hub
from xaihub.testing.catalogue import Check, CheckResult, run
from xaihub.testing.kit import check_names, checks, find, kind_of, subject_of, unknown_check

__all__ = ["Conformance", "conformance"]

T = TypeVar("T", bound=Callable[..., Any])


class Conformance:
    """One check of one thing; a test calls it."""

    def __init__(self, thing: Any, item: Check, parameters: Mapping[str, Any], expected: str) -> None:
        """Check `item` of `thing`, which is expected to refuse or fail if `expected` says why."""
        self.thing = thing
        self.item = item
        self.parameters = parameters
        self.expected = expected

    def __call__(self) -> CheckResult:
        """Run the check; pytest skips what is refused or does not apply.

        Raises:
            AssertionError: It failed, with what to change; or it passed though it was expected not to.
        """
        import pytest

        subject = _subject(self.thing, tuple(sorted(self.parameters.items())))
        result = run(self.item, subject, subject.name)
        if self.expected:
            if result.outcome not in ("refused", "failed"):
                raise AssertionError(f"it {result.outcome}, so take {self.item.name!r} off the list: {self.expected}")
            pytest.skip(f"expected: {self.expected} ({result.advice})")
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
        thing: A subclass of `xaihub.Explainer` or `xaihub.Metric`, or the name of a registered one.
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
    for record in _records(thing):
        items = checks(kind_of(record))
        cases = [Conformance(record, item, parameters, expected.get(item.name, "")) for item in items]
        return pytest.mark.parametrize("check", cases, ids=[item.name for item in items])
    raise UnknownName(f"nothing is called {thing!r}", hint="xaihub list shows every name")


def _records(thing: Any) -> list[Any]:
    return list(find(thing, _hub())) if isinstance(thing, str) else [thing]


@cache
def _hub() -> Hub:
    return Hub()


@cache  # what one check finds out, such as on which network a method works, the next one need not
def _subject(thing: Any, parameters: tuple[tuple[str, Any], ...]) -> Any:
    return subject_of(thing, _hub(), dict(parameters))
