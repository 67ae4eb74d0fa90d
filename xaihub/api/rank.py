"""Ranking what models rely on: from names and images to rankings, and to images of what a channel sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xaihub.api.explain import share_out
from xaihub.errors import InputError, ParameterError, XaihubError
from xaihub.hub import Hub
from xaihub.images import load_image
from xaihub.matching import matched
from xaihub.models.model import Model
from xaihub.params import parameters
from xaihub.ranking.explainer import GlobalExplainer
from xaihub.ranking.explanation import GlobalExplanation

__all__ = ["GlobalOutcome", "Photos", "combined", "explain_global", "labels_of", "make_global_explainers"]

BATCH = 16
KEPT_BYTES = 2**30  # of prepared images; further ones are read again at each pass


@dataclass(kw_only=True)
class Photos:
    """The images of some files as one model takes them, in batches, any number of times.

    Attributes:
        model: The model.
        sources: The files that can be read.
        errors: What was wrong with the others.
    """

    model: Model
    sources: list[str]
    errors: list[XaihubError] = field(default_factory=list)
    _kept: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, model: Model, sources: Sequence[str], watch: Callable[[str], None] | None = None) -> Photos:
        """Read every file once; a file that cannot be read costs only itself."""
        photos, room = cls(model=model, sources=[]), KEPT_BYTES
        for source in sources:
            if watch is not None:
                watch(f"reading {Path(source).name}")
            try:
                inputs = photos.prepare(source)
            except XaihubError as error:
                photos.errors.append(error)
                continue
            photos.sources.append(source)
            room -= inputs.nbytes
            if room > 0:
                photos._kept[source] = inputs
        return photos

    def prepare(self, source: str) -> Tensor:
        """Return the (C, H, W) input of one file."""
        found = self._kept.get(source)
        return self.model.prepare(load_image(source).rgb)[0] if found is None else found

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (b, C, H, W) batches in the order of `sources`."""
        size = self.model.runtime.batch_size or BATCH
        for start in range(0, len(self.sources), size):
            yield torch.stack([self.prepare(source) for source in self.sources[start : start + size]])


@dataclass(frozen=True, kw_only=True)
class GlobalOutcome:
    """One model and explainer: a ranking, or the error that took its place; and the images it was made with."""

    model: Model
    explainer: str
    photos: Photos
    explanation: GlobalExplanation | None = None
    error: XaihubError | None = None


def make_global_explainers(hub: Hub, names: Sequence[str], values: dict[str, str]) -> list[GlobalExplainer]:
    """Make several global explainers and share out the parameters `name=value` or `explainer.name=value`.

    Raises:
        UnknownName: No global explainer has that name.
        ParameterError: No explainer has a parameter of that name.
    """
    known = {name: parameters(hub.global_explainers.get(name).load()) for name in dict.fromkeys(names)}
    return [hub.get_global_explainer(name, **own) for name, own in share_out(known, values).items()]


def explain_global(
    models: Sequence[Model],
    explainers: Sequence[GlobalExplainer],
    sources: Sequence[str],
    *,
    labels: str | None = None,
    seed: int = 0,
    watch: Callable[[str], None] | None = None,
) -> Iterator[GlobalOutcome]:
    """Rank the features of every model by every explainer; a failure costs only itself.

    Args:
        models: The models.
        explainers: The explainers.
        sources: Image files; may be empty where no explainer needs any.
        labels: A CSV file with the images' classes, or None.
        seed: Fixes every random choice.
        watch: Is told what comes next.

    Raises:
        InputError: The labels cannot be read, or do not cover the images.
    """
    for model in models:
        photos = Photos.read(model, sources, watch)
        truth = None if labels is None else labels_of(photos.sources, model.classes, labels)
        for explainer in explainers:
            if watch is not None:
                watch(f"{explainer.name} on {model.name}")
            try:
                found = explainer.explain(model, photos, truth, seed=seed)
                yield GlobalOutcome(model=model, explainer=explainer.name, photos=photos, explanation=found)
            except ParameterError:
                raise  # what is wrong with the question is wrong for the next model as well
            except XaihubError as error:
                yield GlobalOutcome(model=model, explainer=explainer.name, photos=photos, error=error)


def labels_of(sources: Sequence[str], classes: Sequence[str], file: str) -> Tensor:
    """Return the (N,) classes of images from a CSV file with the columns of `xaihub train`: file and label.

    Which row is an image's is told as in `xaihub.matching`.

    Raises:
        InputError: The file cannot be read, has no row for an image, or names classes that the model lacks.
    """
    from xaihub.training.data.sources import open_images

    table = open_images(file, classes=classes or None)
    found = matched(sources, zip(table.names, table.labels, strict=True), where=repr(file))
    for source in sources:
        if source not in found:
            raise InputError(f"{file!r} has no label for {source!r}", hint="columns: file, label")
    return torch.tensor([found[source] for source in sources], dtype=torch.long)


def combined(outcomes: Sequence[GlobalOutcome]) -> list[GlobalExplanation]:
    """Join each explainer's rankings of several models, such as of several seeds, into one with intervals."""
    by_method: dict[str, list[GlobalExplanation]] = {}
    for outcome in outcomes:
        if outcome.explanation is not None:
            by_method.setdefault(outcome.explainer, []).append(outcome.explanation)
    return [GlobalExplanation.combine(parts) for parts in by_method.values() if len(parts) > 1]


def record_of(outcome: GlobalOutcome, files: Sequence[Path]) -> dict[str, Any]:
    """Return an outcome as JSON types, with the files it was written to."""
    if outcome.explanation is None:
        return {"model": outcome.model.name, "explainer": outcome.explainer, "error": str(outcome.error)}
    return {"files": [str(file) for file in files], **outcome.explanation.to_dict()}
