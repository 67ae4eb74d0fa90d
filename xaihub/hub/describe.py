"""Descriptions of registered objects as plain records, for tables, cards and JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from xaihub.errors import UnknownName, did_you_mean
from xaihub.hub import Hub
from xaihub.hub.hub import REGISTRIES
from xaihub.specs import MethodSpec, MetricSpec, ModelCard, Spec

KINDS = (*REGISTRIES, "plugins")
# What a listing shows of the records that have it.
MOST_NAMES = 500  # of one adapter in a list
COLUMNS = ("name", "summary", "needs", "cost", "higher_is_better", "bounds", "architecture", "adapter")


def listing(hub: Hub, kind: str) -> list[dict[str, Any]]:
    """Return one record per registered object of a kind, without importing the objects."""
    if kind == "plugins":
        keys = ("name", "distribution", "version", "builtin", "hooks", "problems")
        return [{key: getattr(info, key) for key in keys} for info in hub.host.plugins]
    return [_row(spec) for spec in hub.registries[kind]]


def models_of_adapters(hub: Hub) -> list[dict[str, Any]]:
    """Return one record per model that an adapter of a third party lists; this imports the adapter."""
    found = [
        {"name": name, "summary": "", "adapter": spec.name, "weights": "", "plugin": spec.plugin}
        for spec in hub.adapters
        if not hub.host.plugin(spec.plugin).builtin
        for name in hub.adapter_names(spec)[:MOST_NAMES]
    ]
    return [row for row in found if row["name"] not in hub.models]


def card(hub: Hub, name: str) -> dict[str, Any]:
    """Return the card of the explainer, metric, objective, model, adapter or other object called `name`.

    If several kinds use the name, the first is shown; "objective:NAME" selects another one.

    Raises:
        UnknownName: No object has that name.
        XaihubError: Its plugin cannot be loaded.
    """
    registries = {registry.noun: registry for registry in hub.registries.values()}
    wanted, _, rest = name.partition(":")
    if rest and wanted in registries:
        name, registries = rest, {wanted: registries[wanted]}
    found = {kind: spec for kind, registry in registries.items() if (spec := registry.find(name)) is not None}
    for kind, spec in found.items():
        also = [f"xaihub show '{other}:{name}'" for other in found if other != kind]
        return {"kind": kind, **_facts(spec), **({"see_also": also} if also else {}), **_parameters(spec)}
    every = [known for registry in registries.values() for known in registry.names()]
    raise UnknownName(f"nothing is named {name!r}", hint=did_you_mean(name, every) or "xaihub list shows every name")


def _row(spec: Spec) -> dict[str, Any]:
    row = {key: getattr(spec, key) for key in COLUMNS if hasattr(spec, key)}
    return row | ({"weights": spec.weights.source} if isinstance(spec, ModelCard) else {}) | {"plugin": spec.plugin}


def _facts(spec: Spec) -> dict[str, Any]:
    omitted = {"base", "judged", "higher_is_better"} | ({"target"} if isinstance(spec, ModelCard) else set())
    every = asdict(spec).items()
    facts = {key: value for key, value in every if key not in omitted and value not in ("", (), {}, None)}
    return facts | ({"direction": spec.direction} if isinstance(spec, MetricSpec) else {})


def _parameters(spec: Spec) -> dict[str, Any]:
    if not isinstance(spec, MethodSpec):
        return {}
    from xaihub.params import parameters

    method = spec.load()
    claims = {
        key: getattr(method, key) for key in ("stochastic", "class_agnostic", "completeness") if hasattr(method, key)
    }
    return {
        **claims,
        "parameters": [
            {"name": item.shown, "type": item.type, "default": item.default, "description": item.description}
            for item in parameters(method).values()
        ],
    }
