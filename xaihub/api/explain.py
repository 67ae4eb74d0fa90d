"""Explaining images: from names to results."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from xaihub.errors import ParameterError, XaihubError, did_you_mean
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import DEFAULT_EXPLAINER, DEFAULT_MODEL, Hub
from xaihub.images import SourceImage, load_image
from xaihub.models.model import Model, Runtime
from xaihub.params import parameters

__all__ = [
    "Outcome",
    "default_hub",
    "explain",
    "explain_image",
    "explain_many",
    "get_explainer",
    "load_model",
    "make_explainers",
    "output_stem",
    "share_out",
]


@cache
def default_hub() -> Hub:
    """Return the hub with every installed plugin, made on first use."""
    return Hub()


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    device: str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    runtime: Runtime | None = None,
) -> Model:
    """Load a model by name: a zoo card, a card file, or any architecture of timm or torchvision.

    See `xaihub.Hub.load_model` for the arguments and errors.
    """
    return default_hub().load_model(
        name, device=device, checkpoint=checkpoint, classes=classes, layer=layer, options=options, runtime=runtime
    )


def get_explainer(name: str = DEFAULT_EXPLAINER, /, **values: Any) -> Explainer:
    """Make an explainer by name; keyword arguments are its parameters.

    See `xaihub.Hub.get_explainer` for the errors.
    """
    return default_hub().get_explainer(name, **values)


def explain(
    source: Any = None,
    *,
    model: str | Model = DEFAULT_MODEL,
    explainer: str | Explainer = DEFAULT_EXPLAINER,
    target: str | int | Target | None = None,
    seed: int = 0,
    device: str = "auto",
    **values: Any,
) -> Explanation:
    """Explain one image.

    Args:
        source: A path, "-", bytes, a PIL image or an array; None is the sample photo.
        model: A model, or its name.
        explainer: An explainer, or its name.
        target: A class index or name, a rank ("top2"), a contrast ("tabby vs Egyptian cat"), or None for the
            predicted class.
        seed: Fixes every random choice.
        device: Where a model that is given by name runs.
        values: Parameters of an explainer that is given by name.

    Raises:
        XaihubError: With one sentence that says what is wrong, and a hint.

    Example::

        explanation = xaihub.explain("cat.jpg", model="resnet50", explainer="rise", masks=500)
        explanation.save_png("cat.png")
    """
    from xaihub.images import sample_photo

    loaded = load_model(model, device=device) if isinstance(model, str) else model
    if isinstance(explainer, str):
        explainer = get_explainer(explainer, **values)
    elif values:
        raise ParameterError(f"{', '.join(values)}: give parameters to the explainer itself, which is made already")
    image = load_image(sample_photo() if source is None else source)
    return explain_image(loaded, explainer, image, target=target, seed=seed)


def explain_image(
    model: Model, explainer: Explainer, image: SourceImage, *, target: str | int | Target | None = None, seed: int = 0
) -> Explanation:
    """Explain one decoded image with a model and an explainer that are made already."""
    inputs, geometry = model.prepare(image.rgb)
    return explainer.explain(model, inputs.unsqueeze(0), target, seed=seed)[0].with_image(image, geometry)


def make_explainers(hub: Hub, names: Sequence[str], values: Mapping[str, str]) -> list[Explainer]:
    """Make several explainers and share out the parameters `name=value` or `explainer.name=value`.

    A bare name goes to every explainer that has such a parameter.

    Raises:
        ParameterError: No explainer has a parameter of that name.
    """
    taken = share_out({name: parameters(hub.explainers.get(name).load()) for name in dict.fromkeys(names)}, values)
    return [hub.get_explainer(name, **own) for name, own in taken.items()]


def share_out(known: Mapping[str, Collection[str]], values: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Give each of several methods its own of the parameters `name=value` and `method.name=value`.

    Args:
        known: The names of the parameters of each method, by its name.
        values: What was given.

    Raises:
        ParameterError: No method has a parameter of that name.
    """
    taken: dict[str, dict[str, str]] = {name: {} for name in known}
    for key, value in values.items():
        owner, _, short = key.rpartition(".")
        takers = [name for name in known if short in known[name] and owner in ("", name)]
        if not takers:
            every = sorted(set().union(*known.values()))
            hint = did_you_mean(short, every) or f"known: {', '.join(every) or 'none'}"
            raise ParameterError(f"{owner or ' or '.join(known)} has no parameter {short!r}", hint=hint)
        for name in takers:
            taken[name][short] = value
    return taken


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One image, model and explainer: an explanation, or the error that took its place."""

    source: str
    model: str
    explainer: str
    explanation: Explanation | None = None
    error: XaihubError | None = None


def explain_many(
    models: Sequence[Model],
    explainers: Sequence[Explainer],
    sources: Iterable[str],
    *,
    target: str | None = None,
    seed: int = 0,
    watch: Callable[[str], None] | None = None,
) -> Iterator[Outcome]:
    """Explain every image with every model and explainer; a failure costs only itself.

    `watch` is told what comes next.

    Raises:
        XaihubError: At once, if a model has no such target.
    """
    for model in models:
        Target.parse(target, model.classes)
    return _explain_many(models, explainers, sources, target, seed, watch)


def _explain_many(
    models: Sequence[Model],
    explainers: Sequence[Explainer],
    sources: Iterable[str],
    target: str | None,
    seed: int,
    watch: Callable[[str], None] | None,
) -> Iterator[Outcome]:
    for source in sources:
        try:
            image = load_image(source)
        except XaihubError as error:
            yield Outcome(source=source, model="", explainer="", error=error)
            continue
        for model in models:
            for explainer in explainers:
                if watch is not None:
                    watch(f"{image.name}: {explainer.name} on {model.name}")
                outcome = partial(Outcome, source=source, model=model.name, explainer=explainer.name)
                try:
                    found = explain_image(model, explainer, image, target=target, seed=seed)
                    yield outcome(explanation=found)
                except ParameterError:
                    raise  # what is wrong with the question is wrong for the next image as well
                except XaihubError as error:
                    yield outcome(error=error)


def output_stem(outcome: Outcome, sources: Sequence[str]) -> str:
    """Name an outcome's files: image, model and explainer, told apart where images share a name."""
    name = _short(outcome.source)
    twins = [source for source in sources if _short(source) == name]
    if len(twins) > 1:
        name = _long(outcome.source)
        if len({_long(twin) for twin in twins}) < len(twins):
            name = f"{sources.index(outcome.source):04d}_{name}"
    return "__".join((name, _safe(outcome.model), _safe(outcome.explainer)))


def _short(source: str) -> str:
    return "stdin" if source == "-" else _safe(Path(source).stem)


def _long(source: str) -> str:
    path = Path(source)
    return _safe(f"{'_'.join(path.parts[-2:-1])}_{path.name}".lstrip("_/"))


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
