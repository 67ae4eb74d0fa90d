"""From a class, a record or a name to its checks and their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from xaihub.errors import ParameterError, PluginError, UnknownName, XaihubError, did_you_mean
from xaihub.explainers.explainer import Explainer
from xaihub.hub import Hub
from xaihub.metric import Metric
from xaihub.models.adapter import ModelAdapter
from xaihub.specs import AdapterSpec, ExplainerSpec, MetricSpec, ModelCard, Spec
from xaihub.testing import all_checks
from xaihub.testing.budgets import small_parameters
from xaihub.testing.catalogue import Check, CheckResult, Kind, catalogue, run
from xaihub.testing.explainer_subject import ExplainerSubject
from xaihub.testing.metric_subject import MetricSubject
from xaihub.testing.model_subject import AdapterSubject, CardSubject
from xaihub.testing.toys import SIDE

__all__ = ["KINDS", "LOADS", "check_names", "checks", "find", "kind_of", "results", "subject_of", "unknown_check"]

KINDS: tuple[Kind, ...] = ("explainer", "metric", "adapter", "model")
LOADS = "loads"  # the check that precedes all others, and has no function of its own
_FILLED = all_checks  # importing it fills the catalogue


def checks(kind: Kind, only: Iterable[str] = ()) -> list[Check]:
    """Return the checks of a kind, or those of them that `only` names."""
    return list(catalogue(kind, only))


def check_names() -> list[str]:
    """Return the name of every check."""
    return [LOADS, *dict.fromkeys(item.name for kind in KINDS for item in catalogue(kind))]


def kind_of(thing: Any) -> Kind:
    """Return which kind of thing a class or a record is.

    Raises:
        ParameterError: It is none that can be checked.
    """
    of_records: dict[type, Kind] = {
        ExplainerSpec: "explainer",
        MetricSpec: "metric",
        AdapterSpec: "adapter",
        ModelCard: "model",
    }
    of_classes: dict[type, Kind] = {Explainer: "explainer", Metric: "metric"}
    for record, kind in of_records.items():
        if isinstance(thing, record):
            return kind
    for base, kind in of_classes.items():
        if isinstance(thing, type) and issubclass(thing, base):
            return kind
    raise ParameterError(
        f"{thing!r} cannot be checked", hint="give a subclass of Explainer or Metric, or a registered name"
    )


def find(name: str, hub: Hub) -> list[Spec]:
    """Return the records of the explainer, metric, adapter and model called `name`, as far as there are any."""
    registries = (hub.explainers, hub.metrics, hub.adapters, hub.models)
    return [spec for registry in registries if (spec := registry.find(name)) is not None]


def subject_of(thing: Any, hub: Hub, parameters: Mapping[str, Any] | None = None) -> Any:
    """Return what the checks of a class, or of a record, are called with.

    A class that is registered brings its record along.

    Raises:
        PluginError: The record's target cannot be loaded, or is of the wrong type.
    """
    kind = kind_of(thing)
    if isinstance(thing, ModelCard):
        return CardSubject(thing, _adapter(hub.adapters.get(thing.adapter)))
    if isinstance(thing, AdapterSpec):
        return AdapterSubject(thing, _adapter(thing))
    spec: Any
    spec, method = (thing, thing.load()) if isinstance(thing, Spec) else (_record_of(thing, hub), thing)
    if kind == "explainer":
        _require(method, Explainer, spec)
        baselines = {item.name: item.load for item in hub.baselines}
        return ExplainerSubject(method, spec=spec, parameters=parameters, baselines=baselines)
    _require(method, Metric, spec)
    return MetricSubject(method, spec=spec, parameters=parameters, explainers=lambda why: _quick_explainers(hub, why))


def results(
    thing: Any, hub: Hub, *, parameters: Mapping[str, Any] | None = None, only: Iterable[str] = ()
) -> Iterator[CheckResult]:
    """Put a class, or what a record stands for, through its checks, and yield how each ended."""
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
    return UnknownName(f"no check is named {name!r}", hint=did_you_mean(name, known) or f"there are {', '.join(known)}")


def _adapter(spec: AdapterSpec) -> ModelAdapter:
    method = spec.load()
    _require(method, ModelAdapter, spec)
    adapter: ModelAdapter = method()
    return adapter


def _require(method: Any, base: type, spec: Spec | None) -> None:
    if not (isinstance(method, type) and issubclass(method, base)):
        where = f"{spec.target!r}" if spec is not None else repr(method)
        raise PluginError(f"{where} is not a subclass of xaihub.{base.__name__}")


def _quick_explainers(hub: Hub, refusal: str) -> Iterator[Explainer]:
    """Make every explainer that can be made, with a small budget; first those that a metric's refusal names."""
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
