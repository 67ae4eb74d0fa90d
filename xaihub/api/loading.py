"""Models and methods that a caller gives by name or as objects."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

from xaihub.api.explain import as_model
from xaihub.api.parameters import assign
from xaihub.api.registration import default_hub, instance, settings
from xaihub.errors import ParameterError
from xaihub.hub import Hub
from xaihub.hub.authoring import snake
from xaihub.hub.registry import Registry
from xaihub.models.backends import AUTO
from xaihub.models.headed import Head
from xaihub.models.model import Model
from xaihub.models.passes import Runtime
from xaihub.models.prompts import aimed
from xaihub.params import Precision

T = TypeVar("T")


def listed(given: Any) -> list[Any]:
    """Return one item, or several, as a list without duplicates."""
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    return list(dict.fromkeys(items))


def load_models(
    hub: Hub,
    names: Sequence[str],
    *,
    device: str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    layer: str | None = None,
    outputs: str = "",
    input: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    backend: str = AUTO,
    precision: Precision = "f32",
    progress: Callable[[int, int], None] | None = None,
) -> list[Model]:
    """Load every model once; `progress` hears of forward passes. Models that share a name are named as they were given.

    `Hub.load_model` documents the arguments and errors.
    """
    found = {
        name: hub.load_model(
            name,
            device=device,
            checkpoint=checkpoint,
            classes=classes,
            layer=layer,
            outputs=outputs,
            input=input,
            runtime=Runtime(
                batch_size=batch_size, threads=threads, backend=backend, precision=precision, progress=progress
            ),
        )
        for name in dict.fromkeys(names)
    }
    count = Counter(model.name for model in found.values())
    for name, model in found.items():
        if count[model.name] > 1:  # such as cards of several seeds, whose files and rows would be confused
            model.name = name
    return list(found.values())


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Models with what is explained of them, as JSON types, so that other processes load the same.

    Attributes:
        models: Names of models.
        loading: The keyword arguments of `load_models`, without `progress`.
        like: Images; the similarity to them is explained.
        text: Texts, as classes of models with a text encoder.
        heads: Names of heads with their parameters.
    """

    models: Sequence[str]
    loading: Mapping[str, Any]
    like: Sequence[str] = ()
    text: Sequence[str] = ()
    heads: Sequence[tuple[str, Mapping[str, Any]]] = ()

    def load(self, hub: Hub, progress: Callable[[int, int], None] | None = None) -> list[Model]:
        """Load every model once; with heads, one model per head.

        Raises:
            XaihubError: A model cannot be loaded or does not fit the rest.
        """
        models = load_models(hub, self.models, progress=progress, **self.loading)
        heads: Sequence[Head | None] = self.make_heads(hub) or [None]
        return [aimed(model, like_images=self.like, texts=self.text, head=head) for model in models for head in heads]

    def make_heads(self, hub: Hub) -> list[Head]:
        """Make the heads."""
        return [hub.get_head(name, **values) for name, values in self.heads]


def loaded_models(given: Sequence[str | Model], **loading: Any) -> list[Model]:
    """Return models that are given as they are or by name, in that order; `loading` is for those given by name."""
    names = [os.fspath(item) for item in given if isinstance(item, (str, os.PathLike))]
    if loading and not names:
        raise ParameterError(f"{', '.join(loading)} cannot be combined with a model that is loaded already")
    by_name = iter(load_models(default_hub(), names, **loading))
    return [next(by_name) if isinstance(item, (str, os.PathLike)) else as_model(item) for item in given]


def made(
    kind: type,
    registry: Registry[Any],
    make: Callable[..., T],
    given: Sequence[Any],
    params: Mapping[str, Any] | None,
) -> list[T]:
    """Return explainers, or objects of another kind, given by name, by class or as they are, with their parameters."""
    specs = [_spec(registry, item) for item in given if isinstance(item, (str, type))]
    values = iter(assign(settings(params), specs))
    return [instance(kind, make, item, next(values) if isinstance(item, (str, type)) else {}) for item in given]


def _spec(registry: Registry[Any], item: str | type) -> Any:
    """Return the record of a name, or what is needed of one for a class."""
    if isinstance(item, str):
        return registry.get(item)
    return SimpleNamespace(name=snake(item.__name__), plugin="", load=lambda: item)
