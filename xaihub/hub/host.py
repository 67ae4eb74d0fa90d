"""Plugin host: discovers, loads, validates and calls plugins."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from importlib.metadata import EntryPoint
from itertools import islice
from typing import Any

import pluggy

from xaihub import hookspecs
from xaihub.errors import PluginError, did_you_mean
from xaihub.hub.quarantine import LIMIT, PATIENCE, Notes
from xaihub.notices import fence

# A plugin that imports one of these when it is loaded delays every command.
HEAVY = ("torch", "timm", "shap", "numpy", "captum", "matplotlib", "jax", "tensorflow")
DELAY = "when loaded, which delays every command"
OWN_DISTRIBUTION = "xaihub"
MOST_RECORDS = 10_000  # of one hook; more come from a generator without an end
# "/" separates a plugin's name, "=" and "," separate parameters and lists, "-" begins an option; control characters,
# quotes and HTML must not appear in output, commands and file names.
NAME = re.compile(r"\w[\w.:+@-]{0,99}")


def same_name(name: str) -> str:
    """Return a name for comparisons: "my-lab" and "my_lab" are one."""
    return name.replace("-", "_")


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
    def identity(self) -> dict[str, str]:
        """What distinguishes this plugin from others and from its other versions, for notes on disk."""
        return {"plugin": self.name, "distribution": self.distribution, "version": self.version, "module": self.module}

    @property
    def removal(self) -> str:
        """The command that removes it, for messages; empty for built-in plugins and those registered by hand."""
        removable = self.distribution and not self.builtin
        return f"remove it: xaihub plugins uninstall {self.distribution}" if removable else ""

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
        self._noted: set[str] = set()  # the third-party plugins that `load` has begun to load
        self.notes = Notes()
        self.warnings: list[str] = []
        self.unreadable: dict[str, str] = {}

    @property
    def plugins(self) -> list[PluginInfo]:
        """Every plugin, broken ones included; built-in plugins first, then by name."""
        return sorted(self._infos.values(), key=lambda info: (not info.builtin, info.name))

    def plugin(self, name: str) -> PluginInfo:
        """Return the known plugin called `name`, or one without an origin for what a script or notebook registered."""
        return self._infos.get(same_name(name)) or PluginInfo(name=name)

    def found(self) -> list[tuple[PluginInfo, EntryPoint]]:
        """Return every installed plugin in the order of loading, from metadata alone.

        Distributions whose entry points cannot be read are in `unreadable` then, with the reason.
        """
        points = self._installed() if self._entry_points is None else self._entry_points
        known = [(_info(point), point) for point in points]
        return sorted(known, key=lambda pair: (not pair[0].builtin, pair[0].name))

    def admits(self, info: PluginInfo) -> bool:
        """Whether the allow-list admits a plugin."""
        allowed = self._environ.get("XAIHUB_LOAD_PLUGINS")
        return info.builtin or allowed is None or same_name(info.name) in map(_named, allowed.split(","))

    def load(self) -> PluginHost:
        """Load every installed plugin of the entry-point group and return the host."""
        self.notes.settle()
        self.warnings += self.notes.ended()
        for info, point in self.found():
            if self.admits(info):
                self._load(info, point)
        for name, what in self.unreadable.items():
            remedy = f"remove it: pip uninstall {name}" if name else "remove it by hand"
            self.warnings.append(
                f"skipped the entry points of distribution {name!r}: entry_points.txt is broken: {what} ({remedy})"
            )
        return self

    def register(self, plugin: object, *, name: str, builtin: bool = False) -> PluginInfo:
        """Register a plugin object (a module, or an instance with hook methods) under `name`."""
        info = PluginInfo(name=name, builtin=builtin)
        if self._claim(info):
            self._fence(info, lambda: self._accept(plugin, info), step="registering it")
        return info

    def collect(self, hook: str) -> Iterator[tuple[PluginInfo, Any]]:
        """Yield (plugin, record) for every record that plugins return from `hook`, built-ins first."""
        caller = getattr(self._manager.hook, hook)
        functions = {impl.plugin_name: impl.function for impl in caller.get_hookimpls()}
        for info in self.plugins:
            if info.name in functions:
                records = self._fence(info, partial(_records, functions[info.name]), step=f"calling {hook}")
                if self._environ.get("XAIHUB_TRACE_PLUGINS", "") not in ("", "0"):
                    sys.stderr.write(f"[plugins] {hook} -> {info.name}: {records!r}\n")
                for record in records or []:
                    yield info, record

    def problem(self, info: PluginInfo, text: str, *, remedy: str | None = None) -> None:
        """Record a problem of a plugin: one warning, or `PluginError` in strict mode.

        The remedy is the command that removes a third-party plugin, unless another or "" is given.
        """
        text = " ".join(text.split())
        remedy = info.removal if remedy is None else remedy
        if self._environ.get("XAIHUB_STRICT_PLUGINS", "") not in ("", "0"):
            raise PluginError(f"plugin {info.label}: {text}", hint=remedy)
        info.problems.append(text)
        self.warnings.append(f"plugin {info.label}: {text}" + (f" ({remedy})" if remedy else ""))

    def _load(self, info: PluginInfo, point: EntryPoint) -> None:
        if not self._claim(info) or self._is_held(info):
            return
        if not info.builtin:
            self._noted.add(info.name)
        before = {name for name in HEAVY if name in sys.modules}
        outcome = self._run(info, point.load, step="importing it")
        info.seconds = outcome.seconds
        plugin = self._judge(info, outcome, step="importing it")
        if plugin is not None:
            self._fence(info, lambda: self._accept(plugin, info), step="registering it")
        info.heavy = [name for name in HEAVY if name in sys.modules and name not in before]
        if info.heavy:
            self.problem(info, f"imports {info.heavy[0]} {DELAY}; import it where it is used")
        if not info.builtin:
            self.notes.remember(info.identity, info.seconds, "; ".join(info.problems))

    def _is_held(self, info: PluginInfo) -> bool:
        """Whether a third-party plugin is skipped, because it ended or hung a process the last time."""
        if info.builtin:
            return False
        reason = self.notes.held(info.identity)
        if reason:
            remedy = f"try again: xaihub plugins retry {info.name}"
            self.problem(info, f"skipped, because {reason}", remedy="; ".join(filter(None, (remedy, info.removal))))
        return bool(reason)

    def _installed(self) -> Iterable[EntryPoint]:
        """Return the entry points of the group; a distribution with unreadable metadata is noted and skipped."""
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
                self.unreadable[name] = fence.described(error)
        return found

    def _claim(self, info: PluginInfo) -> bool:
        if not NAME.fullmatch(info.name):
            self.problem(info, "skipped, because its name cannot be typed in a command")
            return False
        if same_name(info.name) not in self._infos:
            self._infos[same_name(info.name)] = info
            return True
        holder = self._infos[same_name(info.name)]
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

    def _fence(self, info: PluginInfo, action: Callable[[], Any], *, step: str) -> Any:
        """Run a plugin's code, which may fail in any way and must disable only it; return its value or None."""
        return self._judge(info, self._run(info, action, step=step), step=step)

    def _run(self, info: PluginInfo, action: Callable[[], Any], *, step: str) -> fence.Outcome:
        if info.builtin:
            return fence.attempt(action)
        if info.name not in self._noted:  # registered by hand
            return fence.run(action)

        def slow() -> None:
            sys.stderr.write(
                f"note: {step} takes more than {PATIENCE:g} s: plugin {info.label};"
                " Ctrl-C stops it, and later commands skip it\n"
            )

        try:
            with self.notes.loading(info.identity, step):
                outcome = fence.run(action, patience=PATIENCE, limit=LIMIT, slow=slow)
        except fence.Interrupted as stop:
            text = f"stopped while {step}: plugin {info.label}"
            if stop.seconds > PATIENCE:
                self.notes.hold(info.identity, f"it was interrupted after {stop.seconds:.0f} s of {step}")
                text += f"; later commands skip it (try again: xaihub plugins retry {info.name})"
            raise KeyboardInterrupt(text) from None
        if outcome.stopped:
            self.notes.hold(info.identity, f"it was stopped after {LIMIT:g} s of {step}")
        return outcome

    def _judge(self, info: PluginInfo, outcome: fence.Outcome, *, step: str) -> Any:
        """Record what went wrong, on one line, and return the value."""
        changed = f"changed {', '.join(outcome.changed)} while {step}; restored" if outcome.changed else ""
        if outcome.error is None:
            if changed:
                self.problem(info, changed)
            return outcome.value
        error = outcome.error
        what = str(error) if type(error) is PluginError else fence.described(error)
        self.problem(info, f"skipped, failed while {step}: {what}" + (f"; {changed}" if changed else ""))
        return None


def _info(point: EntryPoint) -> PluginInfo:
    """Describe a plugin; its distribution and version are empty if their metadata is missing or broken."""
    info = PluginInfo(name=point.name, module=str(getattr(point, "value", "")))
    with suppress(AttributeError, OSError, KeyError, TypeError, ValueError):
        dist: Any = point.dist
        info.distribution, info.version = dist.name or "", dist.version or ""
    info.builtin = info.distribution == OWN_DISTRIBUTION
    return info


def _named(text: str) -> str:
    return same_name(text.strip())


def _name_of(dist: metadata.Distribution) -> str:
    """Return a distribution's normalised name, or an empty string."""
    with suppress(Exception):  # broken metadata can fail in any way
        return (dist.name or "").replace("_", "-").lower()
    return ""


def _records(function: Callable[[], Any]) -> list[Any]:
    # Generators run here, inside the fence: one that fails halfway registers nothing.
    records = function()
    if records is None or isinstance(records, (str, bytes, Mapping)) or not isinstance(records, Iterable):
        raise PluginError(f"returned {type(records).__name__}, not a list of records")
    found = list(islice(records, MOST_RECORDS + 1))
    if len(found) > MOST_RECORDS:
        raise PluginError(f"returned more than {MOST_RECORDS:,} records")
    return found
