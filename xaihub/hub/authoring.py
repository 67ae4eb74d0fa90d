"""Records of classes that have none of their own: in a single file, a script or a notebook."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import msgspec

from xaihub.errors import PluginError
from xaihub.specs import AdapterSpec, ExplainerSpec, GlobalExplainerSpec, MetricSpec, ObjectiveSpec, Spec

# By the name of the base class in xaihub: the record of a derived class, and the kind of the registry.
KINDS: dict[str, tuple[type[Spec], str]] = {
    "Explainer": (ExplainerSpec, "explainers"),
    "GlobalExplainer": (GlobalExplainerSpec, "global_explainers"),
    "Metric": (MetricSpec, "metrics"),
    "Objective": (ObjectiveSpec, "objectives"),
    "ModelAdapter": (AdapterSpec, "model_adapters"),
}
_SET_HERE = {"target", "plugin", "paper"}


def known_fields(record: type[Spec]) -> set[str]:
    """Return the fields of a record that class attributes of the same names fill."""
    return {item.name for item in fields(record)} - _SET_HERE


def record_of(
    record: type[Spec], name: str, doc: str | None, attributes: Mapping[str, Any], *, target: str = ""
) -> Spec:
    """Return the record of an object that is called `name` in its source.

    The first line of the docstring is the summary; attributes named after fields of the record, such as `limits` or
    `higher_is_better`, fill the record.

    Raises:
        PluginError: An attribute has the wrong type.
    """
    hints = get_type_hints(record)
    known = known_fields(record)
    facts = {key: _fact(name, key, value, hints[key]) for key, value in attributes.items() if key in known}
    summary = inspect.cleandoc(doc or "").partition("\n")[0]
    return record(**{"name": snake(name), "summary": summary, **facts, "target": target})


def snake(name: str) -> str:
    """Return the name of a class in snake case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _fact(owner: str, key: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.ValidationError, TypeError) as error:
        reason = f"{owner}.{key} cannot be {value!r:.60}: {str(error).lower()}"
        raise PluginError(reason, hint="correct the class attribute, or rename it") from error
