"""Descriptions of plugins: origin, registered names, loading time and card."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from importlib import metadata, util
from pathlib import Path
from typing import Any

from xaihub.errors import PluginError, UnknownName, did_you_mean
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost, PluginInfo, same_name
from xaihub.hub.quarantine import SLOW_SECONDS


def canonical(name: str) -> str:
    """Return a distribution's normalised name, for comparisons."""
    return name.strip().replace("_", "-").replace(".", "-").lower()


def states(host: PluginHost) -> list[dict[str, Any]]:
    """Return one record per plugin from metadata and from notes about earlier loads, without importing any plugin."""
    found = [info for info, _point in host.found()]
    host.notes.settle()
    by_hand = [info for info in host.plugins if info.module not in {other.module for other in found}]
    rows = [_state(host, info) for info in found] + [
        {"name": info.name, "state": "failed" if info.problems else "ready", "seconds": None, "problems": info.problems}
        for info in by_hand
    ]
    for info, row in zip([*found, *by_hand], rows, strict=True):
        row |= {"distribution": info.distribution, "version": info.version, "builtin": info.builtin}
    for name, what in host.unreadable.items():
        rows.append(
            {"name": "", "distribution": name, "version": "", "builtin": False, "state": "unreadable",
             "seconds": None, "problems": [f"its entry points cannot be read: {what}"]}
        )  # fmt: skip
    return rows


def _state(host: PluginHost, info: PluginInfo) -> dict[str, Any]:
    row: dict[str, Any] = {"name": info.name, "state": "built in", "seconds": None, "problems": []}
    if info.builtin:
        return row
    seconds, problem = host.notes.recalled(info.identity)
    held = host.notes.held(info.identity)
    conflicts = _conflicts(info.distribution)
    if held:
        state = "skipped"
    elif not host.admits(info):
        state = "off"
    elif conflicts:
        state = "conflict"
    else:
        state = "failed" if problem else "new" if seconds is None else "ready"
    slow = f"takes {seconds:.1f} s to load, which delays every command" if (seconds or 0) > SLOW_SECONDS else ""
    retry = f"{held}; try again: xaihub plugins retry {info.name}" if held else ""
    return {**row, "state": state, "seconds": seconds, "problems": [*filter(None, [retry, *conflicts, problem, slow])]}


def _conflicts(distribution: str) -> list[str]:
    """Return the requirements of a distribution that the environment does not meet."""
    from packaging.requirements import InvalidRequirement, Requirement

    found = []
    try:
        lines = metadata.requires(distribution) or []
    except Exception:  # not installed as a distribution, or its metadata is broken
        return []
    for line in lines:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            found.append(f"the requirement {line!r} cannot be read")
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            found.append(f"needs {wanted.name}, which is not installed")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            found.append(f"needs {wanted.name}{wanted.specifier}, but {version} is installed")
    return found


def overview(hub: Hub, *, commands: Collection[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """Return one record per plugin, with the names that it registered, by kind.

    Args:
        hub: The hub.
        commands: (plugin, command) pairs, which only the command line knows.
    """
    registered: dict[str, dict[str, list[str]]] = {}
    for kind, registry in hub.registries.items():
        for spec in registry:
            registered.setdefault(spec.plugin, {}).setdefault(kind, []).append(spec.name)
    for plugin, command in commands:
        registered.setdefault(plugin, {}).setdefault("commands", []).append(command)
    return [
        {**asdict(info), "seconds": round(info.seconds, 4), "registered": registered.get(info.name, {})}
        for info in hub.host.plugins
    ]


def release(host: PluginHost, name: str) -> list[str]:
    """Take a plugin, or all plugins of a distribution, out of quarantine without loading any; return their names.

    Raises:
        UnknownName: There is no such plugin.
        PluginError: It is not in quarantine.
    """
    host.notes.settle()
    found = _matching([info for info, _point in host.found()], name)
    released = [info.name for info in found if host.notes.release(info.name)]
    if not released:
        raise PluginError(f"plugin {name!r} is not skipped", hint="xaihub plugins list shows the state of every plugin")
    return released


def find(host: PluginHost, name: str) -> list[PluginInfo]:
    """Return the plugin called `name`, or all plugins of the distribution called `name`.

    Raises:
        UnknownName: There is none.
    """
    return _matching(host.plugins, name)


def _matching(infos: Sequence[PluginInfo], name: str) -> list[PluginInfo]:
    found = [info for info in infos if same_name(info.name) == same_name(name)]
    found = found or [info for info in infos if info.distribution and canonical(info.distribution) == canonical(name)]
    if not found:
        known = [item for info in infos for item in (info.name, info.distribution) if item]
        hint = did_you_mean(name, known) or "xaihub plugins list shows every plugin"
        raise UnknownName(f"no plugin is named {name!r}", hint=hint)
    return found


def describe(hub: Hub, name: str, *, commands: Collection[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """Return the records of `overview`, with file, metadata and card, for a plugin or all plugins of a distribution.

    Raises:
        UnknownName: There is no such plugin.
    """
    wanted = {info.name for info in find(hub.host, name)}
    rows = [row for row in overview(hub, commands=commands) if row["name"] in wanted]
    return [{**row, **_origin(row["module"], row["distribution"])} for row in rows]


def _origin(module: str, distribution: str) -> dict[str, Any]:
    """Return the file of a plugin, the metadata of its distribution, and its card."""
    file = file_of(module)
    about: dict[str, Any] = {"file": str(file or ""), "summary": "", "licence": "", "url": "", "requires": []}
    text = ""
    try:
        dist = metadata.distribution(distribution) if distribution else None
    except metadata.PackageNotFoundError:
        dist = None
    if dist is not None:
        facts = dist.metadata.json
        about["summary"] = facts.get("summary", "")
        about["licence"] = facts.get("license_expression", "") or facts.get("license", "")
        about["url"] = facts.get("home_page", "") or next(iter(facts.get("project_url", [])), "")
        about["requires"] = [line for line in dist.requires or [] if "extra ==" not in line]
        about["installed"] = str(dist.locate_file(""))
        text = str(facts.get("description", ""))
    # A card next to the hooks, as in built-in plugins, is more specific than the distribution's description.
    card = file.parent / "README.md" if file is not None and file.name == "__init__.py" else None
    if card is not None and card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
    return {**about, "card": text.strip()}


def file_of(module: str) -> Path | None:
    """Return the file of a module or of a single-file plugin, without importing it."""
    if module.endswith(".py"):
        return Path(module)
    try:
        spec = util.find_spec(module.partition(":")[0].strip()) if module else None
    except Exception:  # a dotted name imports the package before the dot, which may be what is broken
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def count(registered: dict[str, list[str]]) -> str:
    """Return the numbers of registered names, such as "2 explainers, 1 metric"."""
    words = {kind: kind.replace("_", " ") for kind in registered}
    return ", ".join(
        f"{len(names)} {words[kind] if len(names) > 1 else words[kind].removesuffix('s')}"
        for kind, names in registered.items()
    )
