"""Conformance checks of plugins: run the kit on everything that a plugin registered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from xaihub.errors import MissingExtra, UnknownName, XaihubError, did_you_mean
from xaihub.hub import Hub
from xaihub.hub.host import PluginInfo
from xaihub.plugin_tools.overview import find as find_plugins
from xaihub.specs import Spec
from xaihub.testing.catalogue import CheckResult
from xaihub.testing.kit import LOADS, check_names, checks, find, kind_of, registries, results, unknown_check

__all__ = ["CheckResult", "check_plugin"]


def check_plugin(
    name: str, hub: Hub, *, only: Iterable[str] = (), each: Callable[[CheckResult], None] | None = None
) -> list[CheckResult]:
    """Check a plugin, all plugins of a distribution, or one explainer, metric, adapter or model.

    Args:
        name: The name; if a plugin and one of its methods share it, the whole plugin is checked.
        hub: The hub.
        only: The checks to run; by default all.
        each: Called with every result as soon as it is available.

    Raises:
        UnknownName: Nothing is called `name`, or a check in `only` does not exist.
    """
    wanted = list(only)
    for check in wanted:
        if check not in check_names():
            raise unknown_check(check)
    found: list[CheckResult] = []

    def note(result: CheckResult) -> None:
        found.append(result)
        if each is not None:
            each(result)

    infos, specs = _named(name, hub)
    for info in infos:
        if not wanted or LOADS in wanted:
            note(_loads(info, hub))
    for spec in specs:
        if not wanted or any(item.name in wanted for item in checks(kind_of(spec))):
            for result in results(spec, hub, only=wanted):
                note(result)
    return found


def _named(name: str, hub: Hub) -> tuple[list[PluginInfo], list[Spec]]:
    """Return the plugins called `name` with everything that they registered, or the records called `name`."""
    try:
        infos = find_plugins(hub.host, name)
    except UnknownName as error:
        if found := find(name, hub):
            return [], found
        known = [spec.name for registry in registries(hub) for spec in registry]
        known += [word for info in hub.host.plugins for word in (info.name, info.distribution) if word]
        hint = did_you_mean(name, known) or "xaihub list shows every name"
        raise UnknownName(f"no plugin, explainer, metric or model is named {name!r}", hint=hint) from error
    names = {info.name for info in infos}
    return infos, [spec for registry in registries(hub) for spec in registry if spec.plugin in names]


def _loads(info: PluginInfo, hub: Hub) -> CheckResult:
    """Check that the host reported no problem, and that the target of every record can be loaded."""
    started = time.perf_counter()
    broken = []
    every = (spec for registry in hub.registries.values() for spec in registry)
    for spec in (spec for spec in every if spec.plugin == info.name and spec.target):
        try:
            spec.load()
        except MissingExtra:
            continue  # a problem of this environment, not of the plugin
        except XaihubError as error:
            broken.append(f"{error}: correct its target")
    problems = [*info.problems, *broken]
    return CheckResult(
        subject=info.name,
        kind="plugin",
        check=LOADS,
        outcome="failed" if problems else "passed",
        advice="; ".join(problems),
        seconds=time.perf_counter() - started,
    )
