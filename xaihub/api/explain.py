"""Explain images: from names to explanations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from xaihub.api.notebook import live_preview
from xaihub.api.registration import default_hub, instance
from xaihub.errors import ParameterError, XaihubError
from xaihub.evaluation.isolation import Isolation
from xaihub.explainers.budget import Budget, budgeted
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import DEFAULT_EXPLAINER, DEFAULT_MODEL
from xaihub.images import SourceImage, load_image
from xaihub.metric import Scene
from xaihub.models.headed import FunctionHead, Head
from xaihub.models.model import Model
from xaihub.models.passes import Runtime
from xaihub.models.process import fenced
from xaihub.models.prompts import aimed

if TYPE_CHECKING:
    from torch import Tensor

    from xaihub.api.check import Check, Checker
    from xaihub.models.preprocessing import Geometry


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    device: str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    outputs: str = "",
    input: Mapping[str, Any] | None = None,
    runtime: Runtime | None = None,
) -> Model:
    """Load a model by name: a zoo model, a model card, or any classifier of timm or torchvision.

    `xaihub.Hub.load_model` documents the arguments and errors.
    """
    return default_hub().load_model(
        name,
        device=device,
        checkpoint=checkpoint,
        classes=classes,
        layer=layer,
        options=options,
        outputs=outputs,
        input=input,
        runtime=runtime,
    )


def as_model(model: Any, **options: Any) -> Model:
    """Return a model that is given as it is or by name; the options are those of `load_model`, for a name.

    Raises:
        ParameterError: It is neither, such as a bare network.
    """
    if isinstance(model, (str, os.PathLike)):
        return load_model(os.fspath(model), **options)
    if not isinstance(model, Model):
        raise ParameterError(
            f"model is a {type(model).__name__}, which says nothing about its inputs",
            hint="wrap a network: xaihub.Model(network, name='mine', preprocessing=xaihub.Preprocessing(...))",
        )
    if not model.baselines:  # it was not loaded by a hub
        model.baselines = default_hub().removals
    return model


def get_explainer(name: str = DEFAULT_EXPLAINER, /, **values: Any) -> Explainer:
    """Make an explainer by name; keyword arguments are its parameters.

    `xaihub.Hub.get_explainer` documents the errors.
    """
    return default_hub().get_explainer(name, **values)


def explain(
    source: Any = None,
    *,
    model: str | Model = DEFAULT_MODEL,
    explainer: str | type[Explainer] | Explainer = DEFAULT_EXPLAINER,
    target: str | int | Target | Callable[[Any], Tensor] | None = None,
    like: Any = None,
    text: str | Sequence[str] = (),
    page: int | None = None,
    seed: int = 0,
    budget: Budget | str | float | None = None,
    preview: Callable[[Explanation], None] | None = None,
    device: str = "auto",
    **values: Any,
) -> Explanation:
    """Explain one image; safe to call from several threads, with one model or several.

    Args:
        source: A path, "-", bytes, a PIL image or an array; None is the sample photo.
        model: A model, or its name.
        explainer: An explainer, its class, or its name.
        target: A class index or name, a rank ("top2"), a contrast ("tabby vs Egyptian cat"), several labels ("cat +
            dog"), "positive" or "negative" (binary outputs), "value up" or "value down" (regression), or None for the
            predicted class or the only value. Or a function of what the network returns (a tensor, tuple, dictionary),
            which returns one score per image, or a `xaihub.Head`.
        like: An image, or a list of images, as `source`: explain the similarity to it, by default to the first rather
            than the second of two.
        text: A text, or a list of texts, as classes of a model with a text encoder.
        page: The page of a file with several pages or frames, from 1.
        seed: Seed of every random choice.
        budget: Passes for the explanation (500), or seconds ("10s") in which a method that can do so refines its map;
            it has no effect on methods that cannot choose their number of passes. A backward pass counts as two.
        preview: Called with each preliminary map of a method that refines its map within a budget of seconds; by
            default, a notebook shows them.
        device: "auto", "cpu", "cuda", ...; only for a model given by name.
        values: Parameters of the explainer, unless it is an instance.

    Raises:
        XaihubError: The image, model, explainer, target or a parameter cannot be used, or the explainer refuses or
            fails; its own exception is the cause.

    Example::

        explanation = xaihub.explain("cat.jpg", model="resnet50", explainer="rise", masks=500)
        explanation.save_png("cat.png")
    """
    from xaihub.images import sample_photo

    loaded = as_model(model, device=device)
    (method,) = budgeted([instance(Explainer, get_explainer, explainer, values)], budget)
    references = [] if like is None else like if isinstance(like, (list, tuple)) else [like]
    head = target if isinstance(target, Head) else FunctionHead(target) if callable(target) else None
    loaded = aimed(loaded, like_images=references, texts=[text] if isinstance(text, str) else text, head=head)
    target = None if callable(target) or isinstance(target, Head) else target
    image = load_image(sample_photo() if source is None else source, page=page)
    seen = _Input(loaded, image)
    with live_preview(preview) as show, seen.previewing(show):
        return seen.explain(method, target, seed)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result for one image, model and explainer: an explanation or an error."""

    source: str
    model: str
    explainer: str
    explanation: Explanation | None = None
    error: XaihubError | None = None
    check: Check | None = None


class _Input:
    """An image as one model receives it; the model predicts it at most once for all explainers."""

    def __init__(self, model: Model, image: SourceImage) -> None:
        self.model, self.image = model, image

    @cached_property
    def prepared(self) -> tuple[Tensor, Geometry]:
        """The (1, C, H, W) input, and how the image was scaled and cropped."""
        inputs, geometry = self.model.prepare(self.image)
        return inputs.unsqueeze(0), geometry

    @cached_property
    def logits(self) -> Tensor:
        """(1, K) logits of the unmodified image."""
        with self.model.untouched():
            return self.model.predict(self.prepared[0])

    def scene(self, target: str | int | Target | None) -> Scene:
        """Return the image with its target, as metrics see it."""
        wanted = Target.parse(target, self.model.classes, self.model.outputs)
        resolved = wanted.resolve(self.logits, self.model.outputs)
        return Scene(model=self.model, image=self.prepared[0][0], logits=self.logits[0], target=resolved)

    @contextmanager
    def previewing(self, show: Callable[[Explanation], None] | None) -> Iterator[None]:
        """Call `show` with each preliminary map of the model inside, with its image."""
        runtime, before = self.model.runtime, self.model.runtime.preview
        if show is not None:
            geometry = self.prepared[1]
            runtime.preview = lambda found: show(found.with_image(self.image, geometry))
        try:
            yield
        finally:
            runtime.preview = before

    def explain(
        self, explainer: Explainer, target: str | int | Target | None, seed: int, isolation: Isolation | None = None
    ) -> Explanation:
        inputs, geometry = self.prepared
        image = self.model.preprocessing.shown(self.image)
        logits = None if explainer.plain_first else self.logits
        if isolation is None:
            with fenced(explainer):
                found = explainer.explain(self.model, inputs, target, seed=seed, logits=logits)[0]
        else:
            wanted = Target.parse(target, self.model.classes, self.model.outputs)
            found = isolation.explain(explainer, self.model, inputs, wanted, seed=seed, logits=logits)
        return found.with_image(image, geometry)


def explain_many(
    models: Sequence[Model],
    explainers: Sequence[Explainer],
    sources: Iterable[str | SourceImage],
    *,
    target: str | None = None,
    page: int | None = None,
    seed: int = 0,
    timeout: float = 0,
    watch: Callable[[str], None] = lambda _text: None,
    preview: Callable[[Outcome], None] | None = None,
    checker: Checker | None = None,
) -> Iterator[Outcome]:
    """Explain every image with every model and explainer; a failure costs only itself, whatever its reason.

    `page` is the page of each file, from 1.

    With a `timeout` in seconds for one explanation, plugins of third parties run in a worker process (see `Isolation`).
    `watch` is called with a description of each step before it starts, and `preview` with each preliminary map of a
    method that refines its map within a budget of seconds. Each map is checked by the `checker`.

    Raises:
        XaihubError: Immediately, if a model does not have the target.
    """
    for model in models:
        Target.parse(target, model.classes, model.outputs)

    def outcomes(isolation: Isolation) -> Iterator[Outcome]:
        for source in sources:
            try:
                image = load_image(source, page=page)
            except XaihubError as error:
                yield Outcome(source=str(source), model="", explainer="", error=error)
                continue
            for model in models:
                seen = _Input(model, image)
                for explainer in explainers:
                    watch(f"{image.name}: {explainer.name} on {model.name}")
                    where = source if isinstance(source, str) else image.name
                    outcome = partial(Outcome, source=where, model=model.name, explainer=explainer.name)
                    try:
                        with seen.previewing(
                            preview and (lambda made, outcome=outcome: preview(outcome(explanation=made)))
                        ):
                            made = seen.explain(explainer, target, seed, isolation)
                    except XaihubError as error:
                        yield outcome(error=error)
                        continue
                    if checker is None:
                        yield outcome(explanation=made)
                        continue
                    watch(f"{image.name}: checking {explainer.name} on {model.name}")
                    checked = checker.check(seen.scene(target), explainer, made, seed=seed, isolation=isolation)
                    yield outcome(explanation=made, check=checked)

    def isolated() -> Iterator[Outcome]:
        with Isolation(timeout=timeout) as isolation:
            yield from outcomes(isolation)

    return isolated()
