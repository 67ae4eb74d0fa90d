"""Classes and functions that a script or a notebook registers: every registry of the process has them, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from xaihub.hub.host import same_name
from xaihub.specs import Spec

PLUGIN = "session"
_specs: dict[tuple[type[Spec], str], Spec] = {}
_objects: dict[str, Any] = {}


def add(spec: Spec, registered: Any) -> None:
    """Add an object with its record, in place of an earlier one of that name."""
    attribute = f"{type(spec).__name__}.{spec.name}"
    _objects[attribute] = registered
    _specs[type(spec), same_name(spec.name)] = replace(spec, target=f"{__name__}:{attribute}", plugin=PLUGIN)


def find(record_type: type[Spec], name: str) -> Spec | None:
    """Return the record of an object by its name, also with the prefix "session/", or None."""
    return _specs.get((record_type, same_name(name).removeprefix(f"{PLUGIN}/")))


def records(record_type: type[Spec]) -> Iterator[Spec]:
    """Yield the records of one kind."""
    yield from (spec for (kind, _), spec in _specs.items() if kind is record_type)


def name_of(registered: Any) -> str:
    """Return the name of an object, or an empty string if it is not registered."""
    return next((name.partition(".")[2] for name, held in _objects.items() if held is registered), "")


def clear() -> None:
    """Forget everything that was registered."""
    _specs.clear()
    _objects.clear()


def __getattr__(name: str) -> Any:
    """Return a registered object: the target of its record is an attribute of this module."""
    if name not in _objects:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _objects[name]
