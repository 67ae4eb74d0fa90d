"""Explanations of a stream of images, one after the other as they are done."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xaihub.api.explain import Outcome, as_model, get_explainer
from xaihub.api.registration import instance
from xaihub.errors import InputError, XaihubError
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import DEFAULT_EXPLAINER, DEFAULT_MODEL
from xaihub.images import load_image
from xaihub.models.model import Model
from xaihub.models.process import fenced

log = logging.getLogger(__name__)


def explain_many(
    loader: Iterable[Any],
    *,
    model: str | Model = DEFAULT_MODEL,
    explainer: str | type[Explainer] | Explainer = DEFAULT_EXPLAINER,
    target: str | int | Target | None = None,
    labels: bool = False,
    seed: int = 0,
    device: str = "auto",
    callback: Callable[[Outcome], object] | None = None,
    cancel: Callable[[], bool] | None = None,
    **values: Any,
) -> Iterator[Explanation]:
    """Yield the explanation of each image of a stream as it is done; only one batch is in memory at a time.

    An image that fails costs only itself: it is logged as a warning and given to `callback` with its error.

    Args:
        loader: Images as `xaihub.explain` takes them, or inputs of the model as it takes them, (C, H, W) tensors or
            (B, C, H, W) batches, such as a `torch.utils.data.DataLoader` over a data set that uses
            `model.preprocessing`. Each may come as a pair with its label, or with the labels of the batch.
        model: A model, or its name.
        explainer: An explainer, its class, or its name.
        target: What to explain, see `xaihub.explain`.
        labels: Explain the label that comes with each image instead.
        seed: Seed of every random choice; each image is explained as if it were alone.
        device: "auto", "cpu", "cuda", ...; only for a model given by name.
        callback: Called with each `Outcome`, failed ones included, before its explanation is yielded; `source` is the
            path, or the number of the image in the stream.
        cancel: Called before each batch; True stops. Such as the `is_set` of a `threading.Event`.
        values: Parameters of the explainer, unless it is an instance.

    Raises:
        XaihubError: The model, explainer, target or a parameter cannot be used.

    Example::

        loader = DataLoader(ImageFolder("val", transform=lambda image: model.prepare(image)[0]), batch_size=32)
        for explanation in xaihub.explain_many(loader, model=model, explainer="gradcam"):
            ...
    """
    loaded = as_model(model, device=device)
    method = instance(Explainer, get_explainer, explainer, values)
    Target.parse(target, loaded.classes, loaded.outputs)
    return _Stream(loaded, method, target, seed, labels=labels, callback=callback).run(loader, cancel)


class _Stream:
    def __init__(
        self,
        model: Model,
        explainer: Explainer,
        target: str | int | Target | None,
        seed: int,
        *,
        labels: bool,
        callback: Callable[[Outcome], object] | None,
    ) -> None:
        self._model, self._explainer, self._target, self._seed = model, explainer, target, seed
        self._labels, self._callback = labels, callback
        self._number = 0

    def run(self, loader: Iterable[Any], cancel: Callable[[], bool] | None) -> Iterator[Explanation]:
        for item in loader:
            if cancel is not None and cancel():
                log.info("cancelled after %d images", self._number)
                return
            images, labels = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
            for outcome in self._batch(images, labels) if isinstance(images, Tensor) else self._image(images, labels):
                if outcome.error is not None:
                    log.warning("%s: %s", outcome.source, outcome.error)
                else:
                    log.info("%s: %s", outcome.source, outcome.explainer)
                if self._callback is not None:
                    self._callback(outcome)
                if outcome.explanation is not None:
                    yield outcome.explanation

    def _image(self, source: Any, label: Any) -> Iterator[Outcome]:
        name = os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else str(self._number)
        self._number += 1
        try:
            image = load_image(source)
            inputs, geometry = self._model.prepare(image)
            (made,) = self._explained(inputs[None], [label])
            yield self._outcome(name, made.with_image(image, geometry))
        except XaihubError as error:
            yield self._outcome(name, error)

    def _batch(self, inputs: Tensor, labels: Any) -> Iterator[Outcome]:
        batch = inputs if inputs.ndim == 4 else inputs[None]
        names = [str(self._number + row) for row in range(len(batch))]
        self._number += len(batch)
        given = [None] * len(batch) if labels is None else torch.as_tensor(labels).reshape(-1).tolist()
        try:
            found: Iterable[Explanation | XaihubError] = self._explained(batch.to(self._model.device), given)
        except XaihubError:  # of one row, perhaps
            found = [self._alone(row[None], label) for row, label in zip(batch, given, strict=True)]
        for name, one in zip(names, found, strict=True):
            yield self._outcome(name, one)

    def _alone(self, inputs: Tensor, label: Any) -> Explanation | XaihubError:
        try:
            return self._explained(inputs.to(self._model.device), [label])[0]
        except XaihubError as own:
            return own

    def _explained(self, inputs: Tensor, labels: list[Any]) -> list[Explanation]:
        """Return the explanation of each row; rows of one label are explained together."""
        with fenced(self._explainer):
            if not self._labels:
                return self._explainer.explain(self._model, inputs, self._target, seed=self._seed)
            if len(labels) != len(inputs) or None in labels:
                raise InputError(
                    "an image comes without a label", hint="yield pairs of images and labels, or use target"
                )
            found: dict[int, Explanation] = {}
            for label in dict.fromkeys(labels):
                rows = [row for row, own in enumerate(labels) if own == label]
                made = self._explainer.explain(self._model, inputs[rows], int(label), seed=self._seed)
                found |= dict(zip(rows, made, strict=True))
            return [found[row] for row in range(len(inputs))]

    def _outcome(self, source: str, made: Explanation | XaihubError) -> Outcome:
        known = partial(Outcome, source=source, model=self._model.name, explainer=self._explainer.name)
        return known(error=made) if isinstance(made, XaihubError) else known(explanation=made)
