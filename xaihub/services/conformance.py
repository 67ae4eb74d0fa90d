"""What `xaihub plugins check` does: put everything that a plugin registered through the conformance kit."""

from __future__ import annotations

from collections.abc import Iterable

from xaihub.hub import Hub
from xaihub.testing.catalogue import CheckResult

__all__ = ["CheckResult", "check_plugin"]


def check_plugin(name: str, hub: Hub, *, only: Iterable[str] = ()) -> list[CheckResult]:
    """Check what `name` stands for: a plugin, a distribution, or one explainer, metric, adapter or model.

    Args:
        name: The name; a plugin's or a distribution's stands for everything that it registered.
        hub: Where the things are registered.
        only: Names of checks, if not all of them are wanted.

    Raises:
        UnknownName: Nothing is called `name`, or a check in `only` does not exist.
    """
    return []
