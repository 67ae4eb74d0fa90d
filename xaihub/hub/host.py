"""Plugin host: discovers, loads, validates and calls plugins."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import metadata
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from xaihub import hookspecs
from xaihub.errors import PluginError, did_you_mean

# A plugin that imports one of these when it is loaded delays every command.
HEAVY = ("torch", "timm", "shap", "numpy", "captum", "matplotlib", "jax", "tensorflow")
DELAY = "when loaded, which delays every command"
OWN_DISTRIBUTION = "xaihub"


@dataclass(kw_only=True)
class PluginInfo:
    """One plugin and its state in this process.

    Attributes:
        name: The name of its entry point.
        distribution: The installed distribution; empty for a plugin that was registered by hand.
        version: The distribution's version.
        builtin: Whether it is part of xaihub.
        module: The module or file with its hooks.
        seconds: Loading time.
        heavy: The heavy libraries that loading it imported.
        hooks: The hooks that it implements.
        problems: Its errors.
    """

    name: str
    distribution: str = ""
    version: str = ""
    builtin: bool = False
    module: str = ""
    seconds: float = 0.0
    heavy: list[str] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The name with distribution and version, for messages."""
        origin = " ".join(part for part in (self.distribution, self.version) if part)
        return f"{self.name!r} ({origin})" if origin else repr(self.name)


class PluginHost:
    """Finds, loads, validates and calls plugins; a plugin that fails disables only itself.

    Three environment variables control it: `XAIHUB_LOAD_PLUGINS` (an allow-list of third-party plugins,
    comma-separated; empty for none), `XAIHUB_STRICT_PLUGINS=1` (raise instead of warn) and
    `XAIHUB_TRACE_PLUGINS=1` (print every hook call to stderr).
    """

    def __init__(
        self, *, entry_points: Iterable[EntryPoint] | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        """Create a host without plugins; `load` adds the installed ones, `register` adds one by hand."""
        self._environ = os.environ if environ is None else environ
        self._entry_points = entry_points
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._infos: dict[str, PluginInfo] = {}
        self.warnings: list[str] = []

    @property
    def plugins(self) -> list[PluginInfo]:
        """Every plugin, broken ones included; built-in plugins first, then by name."""
        return sorted(self._infos.values(), key=lambda info: (not info.builtin, info.name))

    def plugin(self, name: str) -> PluginInfo:
        """Return the known plugin called `name`."""
        return self._infos[name]

    def load(self) -> PluginHost:
        """Load every installed plugin of the entry-point group and return the host."""
        found = self._installed() if self._entry_points is None else self._entry_points
        known = [(_info(point), point) for point in found]
        allowed = self._environ.get("XAIHUB_LOAD_PLUGINS")
        names = None if allowed is None else {name.strip() for name in allowed.split(",")}
        for info, point in sorted(known, key=lambda pair: (not pair[0].builtin, pair[0].name)):
            if info.builtin or names is None or info.name in names:
                self._load(info, point)
        return self

    def register(self, plugin: object, *, name: str, builtin: bool = False) -> PluginInfo:
        """Register a plugin object (a module, or an instance with hook methods) under `name`."""
        info = PluginInfo(name=name, builtin=builtin)
        if self._claim(info):
            self._fence(info, lambda: self._accept(plugin, info), while_="registering")
        return info

    def collect(self, hook: str) -> Iterator[tuple[PluginInfo, Any]]:
        """Yield (plugin, record) for every record that plugins return from `hook`, built-ins first."""
        caller = getattr(self._manager.hook, hook)
        functions = {impl.plugin_name: impl.function for impl in caller.get_hookimpls()}
        for info in self.plugins:
            if info.name in functions:
                records = self._fence(info, lambda f=functions[info.name]: _as_list(f()), while_=f"calling {hook}")
                if self._environ.get("XAIHUB_TRACE_PLUGINS", "") not in ("", "0"):
                    sys.stderr.write(f"[plugins] {hook} -> {info.name}: {records!r}\n")
                for record in records or []:
                    yield info, record

    def problem(self, info: PluginInfo, text: str) -> None:
        """Record an error of a plugin: one warning, or `PluginError` in strict mode."""
        text = " ".join(text.split())
        removable = info.distribution and not info.builtin
        remedy = f"remove it: xaihub plugins uninstall {info.distribution}" if removable else ""
        if self._environ.get("XAIHUB_STRICT_PLUGINS", "") not in ("", "0"):
            raise PluginError(f"plugin {info.label}: {text}", hint=remedy)
        info.problems.append(text)
        self.warnings.append(f"plugin {info.label}: {text}" + (f" ({remedy})" if remedy else ""))

    def _load(self, info: PluginInfo, point: EntryPoint) -> None:
        if not self._claim(info):
            return
        before = {name for name in HEAVY if name in sys.modules}
        started = time.perf_counter()
        plugin = self._fence(info, point.load, while_="importing it")
        info.seconds = time.perf_counter() - started
        if plugin is not None:
            self._fence(info, lambda: self._accept(plugin, info), while_="registering")
        info.heavy = [name for name in HEAVY if name in sys.modules and name not in before]
        if info.heavy:
            self.problem(info, f"imports {info.heavy[0]} {DELAY}; import it where it is used")

    def _installed(self) -> Iterable[EntryPoint]:
        """Return the entry points of the group; a distribution with unreadable metadata is reported and skipped."""
        with suppress(Exception):  # one malformed file of any distribution breaks the whole listing
            return metadata.entry_points(group=hookspecs.PROJECT)
        found: list[EntryPoint] = []
        seen: set[str] = set()
        for dist in metadata.distributions():
            name = _name_of(dist)
            if name and name in seen:  # the first on the path is imported
                continue
            seen.add(name)
            try:
                found += dist.entry_points.select(group=hookspecs.PROJECT)
            except Exception as error:
                what = " ".join(f"{type(error).__name__}: {error}".split())
                remedy = f"remove it: pip uninstall {name}" if name else "remove it by hand"
                self.warnings.append(
                    f"skipped the entry points of distribution {name!r}: entry_points.txt is broken: {what} ({remedy})"
                )
        return found

    def _claim(self, info: PluginInfo) -> bool:
        if info.name not in self._infos:
            self._infos[info.name] = info
            return True
        holder = self._infos[info.name]
        self.problem(info, f"skipped, because plugin {holder.label} already has that name")
        return False

    def _accept(self, plugin: object, info: PluginInfo) -> None:
        known = [name for name in dir(hookspecs) if name.startswith("xaihub_")]
        for name in (name for name in dir(plugin) if name.startswith("xaihub_")):
            member = getattr(plugin, name)
            marker = getattr(member, "xaihub_impl", None)
            if inspect.isroutine(member) and marker is None:
                raise PluginError(f"{name} is not marked with @hookimpl")
            if marker and name not in known and not marker.get("optionalhook"):
                raise PluginError(f"there is no hook {name!r}", hint=did_you_mean(name, known))
        if self._manager.is_registered(plugin):
            raise PluginError(f"its module is already registered as plugin {self._manager.get_name(plugin)!r}")
        try:
            self._manager.register(plugin, name=info.name)
        except BaseException:
            # pluggy leaves a plugin half registered after a validation error.
            self._manager.unregister(name=info.name)
            raise
        info.hooks = sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or [])

    def _fence(self, info: PluginInfo, action: Any, *, while_: str) -> Any:
        try:
            with redirect_stdout(sys.stderr):  # keep what a plugin prints out of a command's results
                return action()
        except (Exception, SystemExit) as error:
            # The plugin fence: a plugin may fail in any way, and must disable only itself.
            what = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            self.problem(info, f"skipped, failed while {while_}: {what}")
            return None


def _info(point: EntryPoint) -> PluginInfo:
    """Describe a plugin; its distribution and version are empty if their metadata is missing or broken."""
    info = PluginInfo(name=point.name, module=str(getattr(point, "value", "")))
    with suppress(AttributeError, OSError, KeyError, TypeError, ValueError):
        dist: Any = point.dist
        info.distribution, info.version = dist.name or "", dist.version or ""
    info.builtin = info.distribution == OWN_DISTRIBUTION
    return info


def _name_of(dist: metadata.Distribution) -> str:
    """Return a distribution's normalised name, or an empty string."""
    with suppress(Exception):  # broken metadata can fail in any way
        return (dist.name or "").replace("_", "-").lower()
    return ""


def _as_list(records: Any) -> list[Any]:
    # Generators run here, inside the fence: one that fails halfway registers nothing.
    if records is None or isinstance(records, (str, bytes, Mapping)) or not isinstance(records, Iterable):
        raise PluginError(f"returned {type(records).__name__}, not a list of records")
    return list(records)
