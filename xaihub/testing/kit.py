"""The conformance kit: from a class, a record or a name to its checks and their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from xaihub.errors import ParameterError, UnknownName, XaihubError, did_you_mean
from xaihub.explainers.explainer import Explainer
from xaihub.hub import Hub
from xaihub.hub.registry import Registry
from xaihub.metric import Metric
from xaihub.models.adapter import ModelAdapter
from xaihub.models.headed import Head
from xaihub.objective import Objective
from xaihub.specs import AdapterSpec, BaselineSpec, ExplainerSpec, HeadSpec, MetricSpec, ModelCard, ObjectiveSpec, Spec
from xaihub.testing import (
    baseline_checks,
    explainer_contract,
    explainer_cost,
    explainer_meaning,
    explainer_networks,
    head_checks,
    metric_checks,
    model_checks,
    objective_checks,
    parameter_effects,
    process_checks,
)
from xaihub.testing.baseline_subject import BaselineSubject
from xaihub.testing.budgets import small_parameters
from xaihub.testing.catalogue import Check, Kind, catalogue
from xaihub.testing.explainer_subject import ExplainerSubject
from xaihub.testing.head_checks import HeadSubject
from xaihub.testing.metric_subject import MetricSubject
from xaihub.testing.model_subject import AdapterSubject, ModelSubject
from xaihub.testing.objective_subject import ObjectiveSubject
from xaihub.testing.toys import SIDE

KINDS: tuple[Kind, ...] = ("explainer", "metric", "objective", "baseline", "head", "adapter", "model", "plugin")
LOADS = "loads"  # the check that precedes all others of a record
# Importing these modules fills the catalogue. Their checks are run in this order.
MODULES = (
    process_checks,  # a plugin changes most when it is called for the first time
    explainer_contract,
    explainer_networks,
    explainer_cost,
    explainer_meaning,
    metric_checks,
    objective_checks,
    baseline_checks,
    head_checks,
    model_checks,
    parameter_effects,
)
_RECORDS: dict[type, Kind] = {
    ExplainerSpec: "explainer",
    MetricSpec: "metric",
    ObjectiveSpec: "objective",
    BaselineSpec: "baseline",
    HeadSpec: "head",
    AdapterSpec: "adapter",
    ModelCard: "model",
}
_CLASSES: dict[type, Kind] = {Explainer: "explainer", Metric: "metric", Objective: "objective", Head: "head"}


def checks(kind: Kind, only: Iterable[str] = ()) -> list[Check]:
    """Return the checks of a kind, or those named in `only`."""
    known = {module.__name__: at for at, module in enumerate(MODULES)}
    return sorted(catalogue(kind, only), key=lambda item: known.get(item.function.__module__, len(known)))


def check_names() -> list[str]:
    """Return the name of every check."""
    return list(dict.fromkeys([LOADS, *(item.name for kind in KINDS for item in catalogue(kind))]))


def load_check(kind: Kind) -> Check:
    """Return the check that a record of this kind leads to what it promises; creating the subject is the test."""
    requirement, advice = "What the record names can be loaded.", "correct its target"
    return Check(name=LOADS, kind=kind, requirement=requirement, advice=advice, function=lambda _subject: None)


def kind_of(thing: Any) -> Kind:
    """Return the kind of a class or a record.

    Raises:
        ParameterError: It cannot be checked.
    """
    kinds, kind = (_RECORDS, type(thing)) if isinstance(thing, Spec) else (_CLASSES, thing)
    found = next((kinds[base] for base in getattr(kind, "__mro__", ()) if base in kinds), None)
    if found is None:
        raise ParameterError(
            f"{thing!r} cannot be checked",
            hint="pass a subclass of Explainer, Metric, Objective or Head, or a registered name",
        )
    return found


def registries(hub: Hub) -> tuple[Registry[Any], ...]:
    """Return the registries whose records can be checked."""
    return (hub.explainers, hub.metrics, hub.objectives, hub.baselines, hub.heads, hub.adapters, hub.models)


def find(name: str, hub: Hub) -> list[Spec]:
    """Return every record called `name`: of an explainer, a metric, an objective, and so on."""
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
    if isinstance(thing, BaselineSpec):
        return BaselineSubject(thing)
    base, subject = _SUBJECTS[kind_of(thing)]
    is_record = isinstance(thing, Spec)
    method = thing.load_class(base) if is_record else thing
    known = {"spec": thing if is_record else _record_of(thing, hub), "parameters": parameters}
    if subject is ExplainerSubject:
        known["baselines"] = {item.name: item.load for item in hub.baselines}
    if subject is MetricSubject:
        known["explainers"] = partial(_quick_explainers, hub)
    return subject(method, **known)


_SUBJECTS: dict[Kind, tuple[Any, Any]] = {
    "explainer": (Explainer, ExplainerSubject),
    "metric": (Metric, MetricSubject),
    "objective": (Objective, ObjectiveSubject),
    "head": (Head, HeadSubject),
}


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
    return next((spec for registry in registries(hub) for spec in registry if spec.target == target), None)
