"""Registries: records of one kind by name, with suggestions for unknown names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

from xaihub.errors import UnknownName, XaihubError, did_you_mean
from xaihub.hub import session
from xaihub.hub.host import NAME, PluginHost, PluginInfo, same_name
from xaihub.specs import Spec

S = TypeVar("S", bound=Spec)
SUMMARY = 200  # characters


class Registry(Generic[S]):
    """The records of one kind, and those of this session. The first to register a name keeps it.

    A later plugin's record of that name is called `plugin/name`.
    """

    def __init__(self, host: PluginHost, hook: str, record_type: type[S], noun: str) -> None:
        """Collect the records of `hook`, which must be of `record_type`; `noun` is used in messages."""
        self.noun = noun
        self._record_type = record_type
        self._by_name: dict[str, S] = {}  # by comparable name
        for info, record in host.collect(hook):
            reason = _reason(record, record_type)
            if reason:
                host.problem(info, reason if isinstance(record, XaihubError) else f"{hook} returned {reason}")
            else:
                self._add(host, info, replace(record, plugin=info.name, summary=_short(record.summary)))

    def _add(self, host: PluginHost, info: PluginInfo, spec: S) -> None:
        holder = self._by_name.get(same_name(spec.name))
        if holder is not None and holder.plugin == info.name:
            host.problem(info, f"registers {self.noun} {spec.name!r} twice; the first is used")
        elif holder is not None:
            own = f"{info.name}/{spec.name}"
            if host.plugin(holder.plugin).builtin:
                text = f"{self.noun} {spec.name!r} belongs to plugin {holder.plugin!r}; use {own!r}"
            else:
                text = (
                    f"plugin {holder.plugin!r} registers {self.noun} {holder.name!r} as well and is loaded first;"
                    f" use {own!r} for this one and '{holder.plugin}/{holder.name}' for the other"
                )
            host.problem(info, text, remedy="")
            spec = replace(spec, name=own)
        self._by_name.setdefault(same_name(spec.name), spec)

    def __iter__(self) -> Iterator[S]:
        """Yield the records, sorted by name."""
        own = cast("Iterator[S]", session.records(self._record_type))
        return iter(sorted([*self._by_name.values(), *own], key=lambda spec: spec.name))

    def __contains__(self, name: object) -> bool:
        """Whether a record has this name (also as `plugin/name`)."""
        return isinstance(name, str) and self.find(name) is not None

    def names(self) -> list[str]:
        """Return every name, sorted."""
        return [spec.name for spec in self]

    def find(self, name: str) -> S | None:
        """Return the record called `name` or `plugin/name`, or None."""
        found = self._by_name.get(same_name(name))
        if found is not None:
            return found
        plugin, _, short = same_name(name).rpartition("/")
        spec = self._by_name.get(short)
        if plugin and spec is not None and same_name(spec.plugin) == plugin:
            return spec
        return cast("S | None", session.find(self._record_type, name))

    def get(self, name: str) -> S:
        """Return the record called `name` or `plugin/name`.

        Raises:
            UnknownName: No record has that name; the hint lists similar names.
        """
        spec = self.find(name)
        if spec is None:
            hint = did_you_mean(name, self.names()) or f"xaihub list {self.noun.replace(' ', '_')}s shows every name"
            raise UnknownName(f"no {self.noun} is named {name!r}", hint=hint)
        return spec


def _reason(record: Any, record_type: type[Spec]) -> str:
    """Return why a record cannot be used, or an empty string."""
    if isinstance(record, XaihubError):
        return str(record)
    if not isinstance(record, record_type):
        return f"a {type(record).__name__}, not a {record_type.__name__}"
    if not isinstance(record.name, str) or not NAME.fullmatch(record.name):
        return f"the unusable name {record.name!r:.120}"
    if not isinstance(record.summary, str):
        return f"{record.name!r} with a summary that is not text"
    return ""


def _short(summary: str) -> str:
    summary = " ".join(summary.split())
    return summary if len(summary) <= SUMMARY else f"{summary[: SUMMARY - 3]}..."


class Loaders(Mapping[str, Any]):
    """A view of a registry of a hub; a copy holds its records of the moment."""

    def __init__(self, hub: Any, kind: str) -> None:
        """Show the registry that is the attribute `kind` of `hub`, which is filled when it is first used."""
        self._hub, self._kind = hub, kind

    @property
    def _registry(self) -> Registry[Any]:
        registry: Registry[Any] = getattr(self._hub, self._kind)
        return registry

    def __getitem__(self, name: str) -> Callable[[], Any]:
        """Return the loader of a name."""
        spec = self._registry.find(name)
        if spec is None:
            raise KeyError(name)
        loader: Callable[[], Any] = spec.load
        return loader

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._registry.names())

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._registry.names())

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy it as a dictionary."""
        return dict, (dict(self),)
