"""The conformance kit: from a class, a record or a name to its checks and their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from xaihub.errors import ParameterError, UnknownName, XaihubError, did_you_mean
from xaihub.explainers.explainer import Explainer
from xaihub.hub import Hub
from xaihub.hub.registry import Registry
from xaihub.metric import Metric
from xaihub.models.adapter import ModelAdapter
from xaihub.specs import AdapterSpec, ExplainerSpec, MetricSpec, ModelCard, Spec
from xaihub.testing import (
    explainer_contract,
    explainer_cost,
    explainer_meaning,
    metric_checks,
    model_checks,
    parameter_effects,
)
from xaihub.testing.budgets import small_parameters
from xaihub.testing.catalogue import Check, CheckResult, Kind, catalogue, run
from xaihub.testing.explainer_subject import ExplainerSubject
from xaihub.testing.metric_subject import MetricSubject
from xaihub.testing.model_subject import AdapterSubject, ModelSubject
from xaihub.testing.toys import SIDE

KINDS: tuple[Kind, ...] = ("explainer", "metric", "adapter", "model")
LOADS = "loads"  # the check that precedes all others, and is not in the catalogue
# Importing these modules fills the catalogue, in this order.
MODULES = (explainer_contract, explainer_cost, explainer_meaning, metric_checks, model_checks, parameter_effects)
_RECORDS: dict[type, Kind] = {
    ExplainerSpec: "explainer",
    MetricSpec: "metric",
    AdapterSpec: "adapter",
    ModelCard: "model",
}
_CLASSES: dict[type, Kind] = {Explainer: "explainer", Metric: "metric"}


def checks(kind: Kind, only: Iterable[str] = ()) -> list[Check]:
    """Return the checks of a kind, or those named in `only`."""
    return list(catalogue(kind, only))


def check_names() -> list[str]:
    """Return the name of every check."""
    return [LOADS, *dict.fromkeys(item.name for kind in KINDS for item in catalogue(kind))]


def kind_of(thing: Any) -> Kind:
    """Return the kind of a class or a record.

    Raises:
        ParameterError: It cannot be checked.
    """
    kinds, kind = (_RECORDS, type(thing)) if isinstance(thing, Spec) else (_CLASSES, thing)
    found = next((kinds[base] for base in getattr(kind, "__mro__", ()) if base in kinds), None)
    if found is None:
        raise ParameterError(
            f"{thing!r} cannot be checked", hint="pass a subclass of Explainer or Metric, or a registered name"
        )
    return found


def registries(hub: Hub) -> tuple[Registry[Any], ...]:
    """Return the registries whose records can be checked."""
    return (hub.explainers, hub.metrics, hub.adapters, hub.models)


def find(name: str, hub: Hub) -> list[Spec]:
    """Return the records of the explainer, metric, adapter and model called `name`."""
    return [spec for registry in registries(hub) if (spec := registry.find(name)) is not None]


def subject_of(thing: Any, hub: Hub, parameters: Mapping[str, Any] | None = None) -> Any:
    """Return the subject that the checks of a class or a record take; a registered class includes its record.

    Raises:
        PluginError: The record's target cannot be loaded, or is of the wrong type.
    """
    if isinstance(thing, ModelCard):
        return ModelSubject(thing, hub.adapters.get(thing.adapter).load_class(ModelAdapter)())
    if isinstance(thing, AdapterSpec):
        return AdapterSubject(thing, thing.load_class(ModelAdapter)())
    explains = kind_of(thing) == "explainer"
    spec: Any
    if isinstance(thing, Spec):
        spec, method = thing, thing.load_class(Explainer if explains else Metric)
    else:
        spec, method = _record_of(thing, hub), thing
    if explains:
        baselines = {item.name: item.load for item in hub.baselines}
        return ExplainerSubject(method, spec=spec, parameters=parameters, baselines=baselines)
    return MetricSubject(method, spec=spec, parameters=parameters, explainers=lambda why: _quick_explainers(hub, why))


def results(
    thing: Any, hub: Hub, *, parameters: Mapping[str, Any] | None = None, only: Iterable[str] = ()
) -> Iterator[CheckResult]:
    """Run the checks of a class, or of a record's target, and yield their results."""
    kind = kind_of(thing)
    name = thing.name if isinstance(thing, Spec) else thing.__name__
    try:
        subject = subject_of(thing, hub, parameters)
    except XaihubError as error:
        yield CheckResult(
            subject=name, kind=kind, check=LOADS, outcome="failed", advice=f"{error}: correct the record's target"
        )
        return
    for item in checks(kind, only):
        yield run(item, subject, name)


def unknown_check(name: str) -> UnknownName:
    """Return the error for a check that does not exist."""
    known = check_names()
    return UnknownName(f"no check is named {name!r}", hint=did_you_mean(name, known) or f"use {', '.join(known)}")


def _quick_explainers(hub: Hub, refusal: str) -> Iterator[Explainer]:
    """Create all available explainers with small budgets; first those named in a metric's refusal."""
    for spec in sorted(hub.explainers, key=lambda spec: spec.name not in refusal):
        try:
            yield hub.get_explainer(spec.name, **small_parameters(spec.load(), SIDE))
        except XaihubError:
            continue


def _record_of(method: type, hub: Hub) -> Any:
    """Return the record whose target is this class, or None."""
    target = f"{method.__module__}:{method.__qualname__}"
    registry: Iterable[Spec] = hub.explainers if issubclass(method, Explainer) else hub.metrics
    return next((spec for spec in registry if spec.target == target), None)
