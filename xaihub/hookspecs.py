"""Hook specifications: what a plugin can register. Hooks take no arguments, return records, import nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from xaihub.errors import XaihubError
    from xaihub.specs import (
        AdapterSpec,
        BackendSpec,
        BaselineSpec,
        EngineSpec,
        ExplainerSpec,
        GlobalExplainerSpec,
        HeadSpec,
        MetricSpec,
        ModelCard,
        ObjectiveSpec,
        ReproductionSpec,
    )

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "xaihub"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def xaihub_register_explainers() -> Iterable[ExplainerSpec]:  # type: ignore[empty-body]
    """Return a record for each explainer; `target` names a subclass of `xaihub.Explainer`.

    Added in 0.1.
    """


@hookspec
def xaihub_register_global_explainers() -> Iterable[GlobalExplainerSpec]:  # type: ignore[empty-body]
    """Return a record for each global explainer; `target` names a subclass of `xaihub.GlobalExplainer`.

    Added in 0.1.
    """


@hookspec
def xaihub_register_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Return a record for each metric; `target` names a subclass of `xaihub.Metric`.

    Added in 0.1.
    """


@hookspec
def xaihub_register_baselines() -> Iterable[BaselineSpec]:  # type: ignore[empty-body]
    """Return a record for each removal operator, usable as the `baseline` of every method and metric that masks.

    Added in 0.1.
    """


@hookspec
def xaihub_register_backends() -> Iterable[BackendSpec]:  # type: ignore[empty-body]
    """Return a record for each library that can run forward passes; `target` names a subclass of `xaihub.Backend`.

    Added in 0.1.
    """


@hookspec
def xaihub_register_heads() -> Iterable[HeadSpec]:  # type: ignore[empty-body]
    """Return a record for each head, which turns what a network returns into rows of scores; `--head` selects it.

    Added in 0.1.
    """


@hookspec
def xaihub_register_engines() -> Iterable[EngineSpec]:  # type: ignore[empty-body]
    """Return a record for each engine, which computes evaluations in workers; `target` names a `xaihub.Engine`.

    Added in 0.1.
    """


@hookspec
def xaihub_register_model_adapters() -> Iterable[AdapterSpec]:  # type: ignore[empty-body]
    """Return a record for each source of models; `target` names a subclass of `xaihub.ModelAdapter`.

    Added in 0.1.
    """


@hookspec
def xaihub_register_models() -> Iterable[ModelCard | XaihubError]:  # type: ignore[empty-body]
    """Return a card for each model of a zoo; the card names the adapter that builds it.

    An error in place of a card is reported and disables only that card.

    Added in 0.1.
    """


@hookspec
def xaihub_register_objectives() -> Iterable[ObjectiveSpec]:  # type: ignore[empty-body]
    """Return a record for each training objective; `target` names a subclass of `xaihub.Objective`.

    Added in 0.1.
    """


@hookspec
def xaihub_register_reproductions() -> Iterable[ReproductionSpec]:  # type: ignore[empty-body]
    """Return a record for each experiment that `xaihub reproduce` can run; `target` names a click command.

    Added in 0.1.
    """


@hookspec
def xaihub_register_commands() -> Iterable[click.Command]:  # type: ignore[empty-body]
    """Return click commands to add to `xaihub`; the name of a built-in command cannot be reused.

    Added in 0.1.
    """
