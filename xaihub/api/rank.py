"""Rank the features that models as a whole rely on, with global explainers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xaihub.api.loading import listed, loaded_models, made
from xaihub.api.registration import default_hub
from xaihub.errors import InputError, XaihubError
from xaihub.evaluation.isolation import Isolation
from xaihub.hub import DEFAULT_GLOBAL_EXPLAINER, DEFAULT_MODEL, DEFAULT_TIMEOUT
from xaihub.images import load_image
from xaihub.matching import matched
from xaihub.models.model import Model
from xaihub.models.prompts import aimed
from xaihub.ranking.explainer import GlobalExplainer
from xaihub.ranking.explanation import GlobalExplanation

BATCH = 16
KEPT_BYTES = 2**30  # of preprocessed images; the rest is read again on every pass


@dataclass(kw_only=True)
class Photos:
    """Image files, preprocessed for one model; iterate for batches, as often as needed.

    Attributes:
        model: The model.
        sources: The readable files.
        errors: One error per unreadable file.
        page: The page of files with several pages; None is the first.
    """

    model: Model
    sources: list[str]
    errors: list[XaihubError] = field(default_factory=list)
    page: int | None = None
    _kept: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        model: Model,
        sources: Sequence[str],
        watch: Callable[[str], None] = lambda _text: None,
        *,
        page: int | None = None,
    ) -> Photos:
        """Read every file once; unreadable files are skipped and listed in `errors`."""
        photos, room = cls(model=model, sources=[], page=page), KEPT_BYTES
        for source in sources:
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
        return self.model.prepare(load_image(source, page=self.page))[0] if found is None else found

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (b, C, H, W) batches in the order of `sources`."""
        size = self.model.runtime.batch_size or BATCH
        for start in range(0, len(self.sources), size):
            yield torch.stack([self.prepare(source) for source in self.sources[start : start + size]])


@dataclass(frozen=True, kw_only=True)
class RankOutcome:
    """The result for one model and global explainer: a ranking or an error, and the images that were used."""

    model: Model
    explainer: str
    photos: Photos
    explanation: GlobalExplanation | None = None
    error: XaihubError | None = None


def rank(
    images: str | Path | Sequence[str | Path] = (),
    *,
    models: str | Model | Sequence[str | Model] = DEFAULT_MODEL,
    explainers: str
    | type[GlobalExplainer]
    | GlobalExplainer
    | Sequence[str | type[GlobalExplainer] | GlobalExplainer] = DEFAULT_GLOBAL_EXPLAINER,
    params: Mapping[str, Any] | None = None,
    labels: str | Path | None = None,
    seed: int = 0,
    combine: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    text: str | Sequence[str] = (),
    page: int | None = None,
    **loading: Any,
) -> list[GlobalExplanation]:
    """Rank the features that models as a whole rely on, as `xaihub rank` does.

    Args:
        images: Files, folders or globs; global explainers that read the ranking from the weights need none.
        models: Models, or their names.
        explainers: Global explainers, their classes or names.
        params: Parameters of every global explainer given by name or class that has them, or of one: {"scores.x": 1}.
        labels: A CSV file with the classes of the images (file, label).
        seed: Seed of every random choice.
        combine: Return each explainer's rankings of all models as one, with intervals, as seeds of one training.
        timeout: Limit for one ranking by a third-party plugin, which runs in a worker process, in seconds; 0 for no
            limit and no worker.
        text: Texts, as classes of models with a text encoder.
        page: The page of image files with several pages; None is the first.
        loading: For models given by name: device, checkpoint, classes, layer, outputs, input, batch_size, threads,
            backend, precision.

    Returns:
        One ranking per model and global explainer, or one per global explainer with `combine`.

    Raises:
        XaihubError: An argument cannot be used, or a ranking fails.

    Example::

        xaihub.rank("photos/", models="runs/gated/card.yaml")[0].table(10)
    """
    from xaihub.images import find_images

    hub = default_hub()
    methods = made(GlobalExplainer, hub.global_explainers, hub.get_global_explainer, listed(explainers), params)
    networks = [aimed(model, texts=listed(text)) for model in loaded_models(listed(models), **loading)]
    sources = find_images([os.fspath(item) for item in listed(images)]) if images else []
    outcomes = []
    table = None if labels is None else str(labels)
    for outcome in rank_models(networks, methods, sources, labels=table, seed=seed, timeout=timeout, page=page):
        if outcome.error is not None:
            raise outcome.error
        outcomes.append(outcome)
    if combine:
        return combined(outcomes)
    return [outcome.explanation for outcome in outcomes if outcome.explanation is not None]


def rank_models(
    models: Sequence[Model],
    explainers: Sequence[GlobalExplainer],
    sources: Sequence[str],
    *,
    labels: str | None = None,
    seed: int = 0,
    timeout: float = 0,
    watch: Callable[[str], None] = lambda _text: None,
    page: int | None = None,
) -> Iterator[RankOutcome]:
    """Rank the features of every model with every global explainer; one failure does not stop the rest.

    Args:
        models: The models.
        explainers: The global explainers.
        sources: Image files; may be empty if no explainer needs images.
        labels: A CSV file with the images' classes, or None.
        seed: Seed of every random choice.
        timeout: Limit for one ranking by a third-party plugin, in seconds (see `Isolation`).
        watch: Called with a description of each step before it starts.
        page: The page of image files with several pages; None is the first.

    Raises:
        InputError: The labels cannot be read, or do not cover the images.
    """
    with Isolation(timeout=timeout) as isolation:
        for model in models:
            photos = Photos.read(model, sources, watch, page=page)
            truth = None if labels is None else labels_of(photos.sources, model.classes, labels)
            for explainer in explainers:
                watch(f"{explainer.name} on {model.name}")
                outcome = partial(RankOutcome, model=model, explainer=explainer.name, photos=photos)
                try:
                    made = isolation.rank(explainer, model, photos, truth, sources=photos.sources, seed=seed, page=page)
                except XaihubError as error:
                    yield outcome(error=error)
                    continue
                yield outcome(explanation=made)


def labels_of(sources: Sequence[str], classes: Sequence[str], file: str) -> Tensor:
    """Return the (N,) class indices of images from a CSV file with the columns file and label, as for `xaihub train`.

    Rows are matched to images as described in `xaihub.matching`.

    Raises:
        InputError: The file cannot be read, lacks a row for an image, or names a class that the model does not have.
    """
    from xaihub.training.data.sources import open_images

    table = open_images(file, classes=classes or None)
    found = matched(sources, zip(table.names, table.labels, strict=True), where=repr(file))
    for source in sources:
        if source not in found:
            raise InputError(f"{file!r} has no label for {source!r}", hint="columns: file, label")
    return torch.tensor([found[source] for source in sources], dtype=torch.long)


def combined(outcomes: Sequence[RankOutcome]) -> list[GlobalExplanation]:
    """Combine each explainer's rankings of several models (such as seeds of one training) into one with intervals."""
    by_method: dict[str, list[GlobalExplanation]] = {}
    for outcome in outcomes:
        if outcome.explanation is not None:
            by_method.setdefault(outcome.explainer, []).append(outcome.explanation)
    return [GlobalExplanation.combine(parts) for parts in by_method.values() if len(parts) > 1]
