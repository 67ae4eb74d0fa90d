"""The conformance kit in pytest: one test per check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeVar

from xaihub.errors import ParameterError, UnknownName
from xaihub.hub import Hub
from xaihub.testing.catalogue import Check, CheckResult, run
from xaihub.testing.kit import check_names, checks, find, kind_of, subject_of, unknown_check

T = TypeVar("T", bound=Callable[..., Any])


def conformance(thing: Any, /, *, expected: Mapping[str, str] | None = None, **parameters: Any) -> Callable[[T], T]:
    """Run the conformance kit in pytest: the decorated test becomes one test per check.

    The test takes an argument `check` and calls it; so does each test method of a decorated class. A check that is
    refused with a reason, or not applicable, is skipped.

    Args:
        thing: A subclass of `xaihub.Explainer` or `xaihub.Metric`, a record (`ExplainerSpec`, `MetricSpec`,
            `AdapterSpec`, `ModelCard`), or a registered name.
        expected: Checks that need not pass, each with the reason. A listed check that passes is an error.
        parameters: Parameters, such as small budgets.

    Raises:
        ParameterError: `thing` cannot be checked, or an entry of `expected` has no reason.
        UnknownName: Nothing is called `thing`, or a check in `expected` does not exist.

    Example::

        @conformance(MyExplainer, samples=16)
        def test_my_explainer(check):
            check()
    """
    import pytest  # here, so that the kit works without pytest

    expected = expected or {}
    for name, reason in expected.items():
        if name not in check_names():
            raise unknown_check(name)
        if len(reason.split()) < 2:
            raise ParameterError(f"the expected failure of {name!r} has no reason", hint="say why it need not pass")
    record = _record(thing)
    subject = cache(lambda: subject_of(record, _hub(), parameters))  # shared by the checks, which reuse results
    items = checks(kind_of(record))
    cases = [partial(_run, subject, item, expected.get(item.name, "")) for item in items]
    return pytest.mark.parametrize("check", cases, ids=[item.name for item in items])


def _run(subject: Callable[[], Any], item: Check, expected: str) -> CheckResult:
    """Run a check, which is expected not to pass if `expected` gives a reason; skip if it is refused or not applicable.

    Raises:
        AssertionError: It failed; the message says what to change. Or it passed although it was expected not to.
    """
    import pytest

    result = run(item, subject(), subject().name)
    if expected:
        if result.outcome in ("passed", "not applicable"):
            raise AssertionError(f"{result.outcome}: remove {item.name!r} from `expected` ({expected})")
        pytest.skip(f"expected: {expected} ({result.advice})")
    if result.outcome == "failed":
        raise AssertionError(result.advice)
    if result.outcome != "passed":
        pytest.skip(f"{result.outcome}: {result.advice}")
    return result


def _record(thing: Any) -> Any:
    if not isinstance(thing, str):
        return thing
    found = find(thing, _hub())
    if not found:
        raise UnknownName(f"nothing is named {thing!r}", hint="xaihub list shows every name")
    return found[0]


@cache  # loading every plugin takes a while
def _hub() -> Hub:
    return Hub()
