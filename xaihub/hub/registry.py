"""Registries: records of one kind by name, with suggestions for unknown names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, TypeVar

from xaihub.errors import UnknownName, XaihubError, did_you_mean
from xaihub.hub.host import PluginHost
from xaihub.specs import Spec

S = TypeVar("S", bound=Spec)
# "/" separates a plugin's name, "=" and "," separate parameters and lists; control characters, quotes and HTML must not
# appear in output, commands and file names.
_NAME = re.compile(r"[\w.:+@-]+")


class Registry(Generic[S]):
    """The records of one kind. The first to register a name keeps it; a later one is called `plugin/name`."""

    def __init__(self, host: PluginHost, hook: str, record_type: type[S], noun: str) -> None:
        """Collect the records of `hook`, which must be of `record_type`; `noun` is used in messages."""
        self.noun = noun
        self._by_name: dict[str, S] = {}
        for info, record in host.collect(hook):
            if isinstance(record, XaihubError):
                host.problem(info, str(record))
                continue
            if not isinstance(record, record_type):
                host.problem(info, f"{hook} returned a {type(record).__name__}, not a {record_type.__name__}")
                continue
            if not isinstance(record.name, str) or not _NAME.fullmatch(record.name):
                host.problem(info, f"{hook} returned the unusable name {record.name!r}")
                continue
            spec = replace(record, plugin=info.name)
            if record.name in self._by_name:
                owner = self._by_name[record.name].plugin
                host.problem(
                    info, f"{noun} {record.name!r} belongs to plugin {owner!r}; use '{info.name}/{record.name}'"
                )
                spec = replace(spec, name=f"{info.name}/{record.name}")
            self._by_name.setdefault(spec.name, spec)

    def __iter__(self) -> Iterator[S]:
        """Yield the records, sorted by name."""
        return iter(sorted(self._by_name.values(), key=lambda spec: spec.name))

    def __contains__(self, name: object) -> bool:
        """Whether a record has this name (also as `plugin/name`)."""
        return isinstance(name, str) and self.find(name) is not None

    def names(self) -> list[str]:
        """Return every name, sorted."""
        return sorted(self._by_name)

    def find(self, name: str) -> S | None:
        """Return the record called `name` or `plugin/name`, or None."""
        if name in self._by_name:
            return self._by_name[name]
        plugin, _, short = name.rpartition("/")
        spec = self._by_name.get(short)
        return spec if plugin and spec is not None and spec.plugin == plugin else None

    def get(self, name: str) -> S:
        """Return the record called `name` or `plugin/name`.

        Raises:
            UnknownName: No record has that name; the hint lists similar names.
        """
        spec = self.find(name)
        if spec is None:
            hint = did_you_mean(name, self._by_name) or f"xaihub list {self.noun.replace(' ', '_')}s shows every name"
            raise UnknownName(f"no {self.noun} is named {name!r}", hint=hint)
        return spec
