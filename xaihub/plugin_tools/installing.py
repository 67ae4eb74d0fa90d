"""Installation and removal of plugins with pip or uv, followed by a report on what they registered."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import invalidate_caches, metadata
from pathlib import Path
from typing import Any

from xaihub.errors import PluginError, UnknownName, did_you_mean
from xaihub.hookspecs import PROJECT
from xaihub.hub.host import DELAY, OWN_DISTRIBUTION, same_name
from xaihub.hub.quarantine import Notes
from xaihub.plugin_tools import installer
from xaihub.plugin_tools.overview import canonical

# Longer listings are treated as hanging.
LISTING_SECONDS = 60


@dataclass(kw_only=True)
class Installed:
    """One plugin after an install.

    Attributes:
        name: The name of the plugin.
        distribution: Its distribution.
        version: The distribution's version.
        registered: The names that it registered, by kind.
        seconds: Loading time in a fresh process.
        heavy: The heavy libraries that loading it imports.
        problems: Its errors, such as names that are taken.
        broken: Whether nothing that it registers can be used.
    """

    name: str
    distribution: str
    version: str
    registered: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    heavy: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    broken: bool = False


def install(
    wanted: Sequence[str],
    *,
    editable: bool = False,
    upgrade: bool = False,
    options: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
) -> list[Installed]:
    """Install distributions into the running interpreter's environment, and describe their plugins.

    Args:
        wanted: Anything that pip accepts: names, folders, files, URLs.
        editable: Use the files of folders in place.
        upgrade: Replace installed versions with newer ones.
        options: Further options for pip.
        tell: Called with each line of the installer's output.

    Raises:
        PluginError: There is no installer, it failed, or it installed no plugin.
        Stopped: The user interrupted it.
    """
    for item in wanted:
        if item.startswith("-"):
            raise PluginError(f"{item!r} is an option, not a name", hint="give options before '--'")
        if item.startswith((".", "/", "~", "\\")) and not _path(item).exists():
            raise PluginError(f"there is no file or folder {item!r}")
    words = installer.command("install")
    words += ["--upgrade"] * upgrade + list(options)
    for item in wanted:
        words += ["--editable", item] if editable else [item]
    named = {canonical(_requirement_name(item)) for item in wanted}
    for name in named & set(_distributions()) - {OWN_DISTRIBUTION}:
        if name.startswith(PROJECT) or _is_plugin(name):
            _remove_remains(name)  # the installer would take them for a complete installation
    before = _distributions()
    code, lines, interrupted = installer.run(words, tell)
    if code and not interrupted:
        raise PluginError(installer.last_words(lines, f"the installer failed with status {code}"))
    after = _distributions()
    fresh = {name for name, stamp in after.items() if before.get(name) != stamp}
    named = named & set(after) | {name for name in after if _origin(name) in {_address(item) for item in wanted}}
    plugins = {name for name in fresh | named if _is_plugin(name)}
    if interrupted:
        listed = " ".join(sorted(plugins or fresh))
        raise installer.Stopped(
            "interrupted after the installation had completed", hint=f"undo it: xaihub plugins uninstall {listed}"
        )
    if not plugins:
        strangers = " ".join(sorted(named or fresh))
        hint = f"remove it: {installer.shown()} {strangers}" if strangers else "xaihub plugins list"
        what = ", ".join(map(repr, wanted))
        raise PluginError(
            f"installed {what}, which is not a plugin: it has no entry point in the group {PROJECT!r}", hint=hint
        )
    return inspect_installed(plugins)


def inspect_installed(distributions: Iterable[str]) -> list[Installed]:
    """Load the plugins of some distributions in fresh processes, and describe each.

    Every plugin is loaded with all others, to find name clashes, and then alone, to measure its loading time.
    """
    wanted = {canonical(name) for name in distributions}
    notes = Notes()
    for point in (point for name in wanted for point in _points(name)):
        notes.release(point)
    rows, failure = _listed()
    while failure and notes.settle():
        rows, failure = _listed()  # without the plugin that ended the process
    found = []
    for name in sorted(wanted):
        version = metadata.version(name)
        mine = [row for row in rows if canonical(row["distribution"]) == name]
        if not mine:
            reason = failure or "skipped, because another plugin has its name"
            found += [
                Installed(name=point, distribution=name, version=version, problems=[reason], broken=True)
                for point in _points(name)
            ]
        for row in mine:
            alone, _ = _listed(only=row["name"])
            costs = next((item for item in alone if item["name"] == row["name"]), row)
            found.append(
                Installed(
                    name=row["name"],
                    distribution=row["distribution"],
                    version=version,
                    registered=row["registered"],
                    seconds=costs["seconds"],
                    heavy=costs["heavy"],
                    # Heavy imports are reported by `heavy`; in the full list they depend on the order of loading.
                    problems=[text for text in row["problems"] if DELAY not in text],
                    broken=not row["registered"],
                )
            )
    return found


def removable(names: Iterable[str]) -> list[str]:
    """Return the distributions of some plugins, each given by the name of the plugin or of the distribution.

    Only metadata is read, so that a plugin that terminates the interpreter when loaded can be removed as well.

    Raises:
        UnknownName: There is no such plugin.
        PluginError: It is part of xaihub, or not a plugin.
    """
    plugins: dict[str, list[str]] = {}
    for distribution in _distributions():
        for point in _points(distribution):
            plugins.setdefault(point, []).append(distribution)
    every = {distribution for found in plugins.values() for distribution in found} - {OWN_DISTRIBUTION}
    return list(dict.fromkeys(item for name in names for item in _holders(name, plugins, every)))


def _holders(name: str, plugins: dict[str, list[str]], every: set[str]) -> list[str]:
    if canonical(name) == OWN_DISTRIBUTION:
        raise PluginError("xaihub itself is not a plugin", hint=f"remove it: {installer.shown()} xaihub")
    if OWN_DISTRIBUTION in plugins.get(name, ()):
        others = [item for item in plugins[name] if item != OWN_DISTRIBUTION]
        hint = f"to remove the other plugin of that name, use {' or '.join(others)}" if others else ""
        raise PluginError(f"plugin {name!r} is part of xaihub and cannot be removed alone", hint=hint)
    same = [held for point, found in plugins.items() if same_name(point) == same_name(name) for held in found]
    if same:
        return same
    if canonical(name) in every:
        return [canonical(name)]
    if canonical(name) in _distributions():
        command = f"{installer.shown()} {canonical(name)}"
        raise PluginError(f"{name!r} is not a plugin of xaihub and is not removed", hint=f"use {command}")
    near = did_you_mean(name, [*plugins, *every])
    raise UnknownName(f"no plugin is named {name!r}", hint=near or "xaihub plugins list shows every plugin")


def uninstall(distributions: Sequence[str], *, tell: Callable[[str], None] | None = None) -> list[str]:
    """Remove distributions; return those of their requirements that no other distribution needs.

    Raises:
        PluginError: There is no installer, or it failed.
    """
    needed = {canonical(_requirement_name(line)) for name in distributions for line in _requires(name)}
    words = installer.command("uninstall", *distributions)
    code, lines, _ = installer.run(words, tell)
    for name in set(distributions) & set(_distributions()):
        _remove_remains(name)
    if set(distributions) & set(_distributions()):
        raise PluginError(installer.last_words(lines, f"the installer failed with status {code}"))
    installed = _distributions()
    still = {canonical(_requirement_name(line)) for name in installed for line in _requires(name)}
    return sorted((needed - still - {OWN_DISTRIBUTION}) & set(installed))


def _listed(only: str | None = None) -> tuple[list[dict[str, Any]], str]:
    """List the plugins in a fresh process; return records, or none and the reason. `only` loads one third party."""
    kept = {key: value for key, value in os.environ.items() if key == "XAIHUB_STATE" or not key.startswith("XAIHUB_")}
    if only is not None:
        kept["XAIHUB_LOAD_PLUGINS"] = only
    command = [sys.executable, "-P", "-m", "xaihub", "plugins", "list", "--load", "--json"]
    try:
        done = subprocess.run(  # noqa: S603 - the running interpreter with fixed arguments
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=kept,
            timeout=LISTING_SECONDS,
            check=False,
        )
        rows: list[dict[str, Any]] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return [], f"loading the plugins took more than {LISTING_SECONDS} s"
    except json.JSONDecodeError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [], f"loading the plugins together with it fails with status {done.returncode}: {last}"
    return rows, ""


def _distributions() -> dict[str, tuple[str, int]]:
    """Return every installed distribution with its version and modification time."""
    invalidate_caches()
    folders = [folder for entry in sys.path for folder in Path(entry or ".").glob("*.dist-info")]
    stamps = {canonical(folder.name.rpartition("-")[0]): folder.stat().st_mtime_ns for folder in reversed(folders)}
    found: dict[str, tuple[str, int]] = {}
    for dist in metadata.distributions():
        try:
            name, version = canonical(dist.name), dist.version
        except Exception:  # noqa: S112 - broken metadata of any distribution can fail in any way
            continue
        found.setdefault(name, (version, stamps.get(name, 0)))
    return found


def _points(distribution: str) -> list[str]:
    """Return the names of the plugins in a distribution."""
    try:
        return [point.name for point in metadata.distribution(distribution).entry_points if point.group == PROJECT]
    except Exception:  # as above, or not installed
        return []


def _path(item: str) -> Path:
    """Return the path that an argument of pip may be, without the extras in brackets."""
    return Path(item.partition("[")[0]).expanduser()


def folders_named_like_packages(wanted: Iterable[str]) -> list[str]:
    """Return the arguments that name a folder here, and a package for pip.

    Raises:
        PluginError: Such a folder holds no project.
    """
    found = [item for item in wanted if re.fullmatch(r"\w[\w.-]*(\[.*\])?", item) and _path(item).is_dir()]
    for item in found:
        if not any((_path(item) / file).is_file() for file in ("pyproject.toml", "setup.py")):
            raise PluginError(
                f"{item!r} is a folder here, without a pyproject.toml",
                hint=f"for the package of that name, write '{item}>=0'",
            )
    return found


def _address(item: str) -> str:
    """Return the URL that installers record for a path or a URL."""
    return _path(item).resolve().as_uri() if _path(item).exists() else item.removeprefix("git+")


def _origin(name: str) -> str:
    """Return the URL that a distribution was installed from, or an empty string for the package index (PEP 610)."""
    try:
        return str(json.loads(metadata.distribution(name).read_text("direct_url.json") or "{}").get("url", ""))
    except Exception:  # broken metadata, as above
        return ""


def _is_plugin(name: str) -> bool:
    return name != OWN_DISTRIBUTION and bool(_points(name))


def _requires(name: str) -> list[str]:
    try:
        return [line for line in metadata.requires(name) or [] if "extra ==" not in line]
    except Exception:  # as above
        return []


def _requirement_name(text: str) -> str:
    """Return the distribution's name in a requirement, a wheel's file name, or a folder named after it."""
    bare = text.strip().rstrip("/\\")
    last = Path(bare).name if os.sep in bare or "/" in bare else bare
    if last.endswith(".whl"):
        return last.partition("-")[0]
    for sign in "[<>=!~;@ (":
        last = last.partition(sign)[0]
    return last


def _remove_remains(name: str) -> None:
    """Remove a distribution that installers cannot remove, because its list of files was never written."""
    dist = metadata.distribution(name)
    if dist.files is not None:
        return
    site = Path(str(dist.locate_file("")))
    for module in {point.module.partition(".")[0] for point in dist.entry_points if point.group == PROJECT}:
        if module.startswith("xaihub_"):
            shutil.rmtree(site / module, ignore_errors=True)
            (site / f"{module}.py").unlink(missing_ok=True)
    for folder in site.glob("*.dist-info"):
        if canonical(folder.name.partition("-")[0]) == name:
            shutil.rmtree(folder, ignore_errors=True)
