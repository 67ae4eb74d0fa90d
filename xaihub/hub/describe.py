"""What is known of registered things, as plain records for tables, cards and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from xaihub.errors import UnknownName, did_you_mean
from xaihub.hub import Hub
from xaihub.specs import ExplainerSpec, GlobalExplainerSpec, MetricSpec, ModelCard, ObjectiveSpec, Spec

__all__ = ["KINDS", "architectures", "card", "listing"]

KINDS = (
    "explainers",
    "global_explainers",
    "metrics",
    "objectives",
    "baselines",
    "models",
    "adapters",
    "reproductions",
    "plugins",
)


def listing(hub: Hub, kind: str) -> list[dict[str, Any]]:
    """Return one record for each registered thing of a kind; imports nothing that is registered."""
    if kind == "plugins":
        return [
            {
                "name": info.name,
                "distribution": info.distribution,
                "version": info.version,
                "builtin": info.builtin,
                "hooks": info.hooks,
                "problems": info.problems,
            }
            for info in hub.host.plugins
        ]
    return [_row(spec) for spec in getattr(hub, kind)]


def architectures(hub: Hub, adapter: str, pattern: str) -> list[str]:
    """Return the architectures of an adapter that match a glob pattern."""
    names: list[str] = hub.adapters.get(adapter).load()().names(pattern)
    return names


def card(hub: Hub, name: str) -> dict[str, Any]:
    """Return everything known of the explainer, metric, objective, model, adapter or whatever else is called `name`.

    Where things of several kinds have one name, the first is shown; "objective:NAME" asks for the other.

    Raises:
        UnknownName: Nothing has that name.
        XaihubError: Its plugin cannot be loaded.
    """
    registries: Mapping[str, Any] = {
        "explainer": hub.explainers,
        "global explainer": hub.global_explainers,
        "metric": hub.metrics,
        "objective": hub.objectives,
        "baseline": hub.baselines,
        "model": hub.models,
        "adapter": hub.adapters,
        "reproduction": hub.reproductions,
    }
    wanted, _, rest = name.partition(":")
    if rest and wanted in registries:
        name, registries = rest, {wanted: registries[wanted]}
    found = {kind: spec for kind, registry in registries.items() if (spec := registry.find(name)) is not None}
    for kind, spec in found.items():
        also = [f"xaihub show '{other}:{name}'" for other in found if other != kind]
        return {"kind": kind, **_facts(spec), **({"see_also": also} if also else {}), **_parameters(spec)}
    every = [known for registry in registries.values() for known in registry.names()]
    raise UnknownName(f"nothing is named {name!r}", hint=did_you_mean(name, every) or "xaihub list shows everything")


def _row(spec: Spec) -> dict[str, Any]:
    row: dict[str, Any] = {"name": spec.name, "summary": spec.summary}
    if isinstance(spec, (ExplainerSpec, GlobalExplainerSpec)):
        row |= {"needs": list(spec.needs), "cost": spec.cost}
    if isinstance(spec, MetricSpec):
        row |= {"higher_is_better": spec.higher_is_better, "bounds": list(spec.bounds)}
    if isinstance(spec, ObjectiveSpec):
        row |= {"cost": spec.cost}
    if isinstance(spec, ModelCard):
        row |= {"architecture": spec.architecture, "adapter": spec.adapter, "weights": spec.weights.source}
    return row | {"plugin": spec.plugin}


def _facts(spec: Spec) -> dict[str, Any]:
    hidden = {"target", "base"} if isinstance(spec, ModelCard) else {"base", "judged"}
    return {key: value for key, value in asdict(spec).items() if key not in hidden and value not in ("", (), {}, None)}


def _parameters(spec: Spec) -> dict[str, Any]:
    if not isinstance(spec, (ExplainerSpec, GlobalExplainerSpec, MetricSpec, ObjectiveSpec)):
        return {}
    from xaihub.params import parameters

    method = spec.load()
    known = parameters(method)
    claims = {
        key: getattr(method, key) for key in ("stochastic", "class_agnostic", "completeness") if hasattr(method, key)
    }
    return {
        **claims,
        "parameters": [
            {"name": item.shown, "type": item.type, "default": item.default, "description": item.description}
            for item in known.values()
        ],
    }
