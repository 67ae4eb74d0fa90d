"""Similarity to other images: a head for any network that computes features, whether or not it has a classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from xaihub.errors import ModelError, ParameterError
from xaihub.images import SourceImage, load_image
from xaihub.models.hashing import hash_state
from xaihub.models.headed import Head
from xaihub.models.model import Model
from xaihub.models.outputs import Outputs


class Similarity(Head):
    """Cosine similarity of an image's features to those of other images, one column for each."""

    def __init__(self, references: Sequence[Any] = ()) -> None:
        """Compare with `references`: paths, bytes, PIL images or arrays."""
        self.images: list[SourceImage] = [load_image(reference) for reference in references]
        self._known = nn.Parameter(torch.empty(0, 0), requires_grad=False)

    def bind(self, model: Model) -> None:
        """Compute the features of the references.

        Raises:
            ParameterError: There are no references.
            ModelError: The network does not return one row of features per image.
        """
        if not self.images:
            raise ParameterError("similarity needs an image to compare with", hint="give --like FILE")
        reader = model.with_head(Features())
        with reader.untouched():
            rows = [reader.predict(reader.prepare(image)[0][None]) for image in self.images]
        # A parameter is known to be constant, whereas a tensor with as many rows as a batch may come from its images.
        self._known = nn.Parameter(normalize(torch.cat(rows), dim=1), requires_grad=False)
        self.classes = tuple(f"like {image.name}" for image in self.images)
        self.title = f"similarity to {', '.join(image.name for image in self.images)}"
        self.outputs = Outputs("regression", default="0 vs 1" if len(self.images) == 2 else "")
        self.identity = hash_state({"references": self._known})

    def rows(self, outputs: Any) -> Tensor:
        """Return (B, K) cosine similarities to the K references, in [-1, 1]."""
        return normalize(features(outputs), dim=1) @ self._known.to(outputs).T


class Features(Head):
    """The features themselves."""

    outputs = Outputs("embedding")

    def rows(self, outputs: Any) -> Tensor:
        """Return (B, D) features."""
        return features(outputs)


def features(outputs: Any) -> Tensor:
    """Return (B, D) features of a network's outputs: rows as they are, and the mean over the positions of a map.

    Raises:
        ModelError: They are neither (B, D) rows nor (B, D, h, w) maps.
    """
    if isinstance(outputs, Tensor) and outputs.ndim == 4:
        outputs = outputs.mean((2, 3))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        what = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(
            f"the network does not return one row of features per image, but {what}",
            hint="pass target=FUNCTION in Python, which turns its outputs into scores",
        )
    return outputs


def like(model: Model, references: Sequence[Any | str | os.PathLike[str]]) -> Model:
    """Return a model of the same network whose scores are similarities to images.

    Features are the embedding that the network returns, or, if it is a classifier, what its classifier reads.

    Raises:
        InputError: An image cannot be read.
        ModelError: The classifier was not found, or there is not one row of features per image.
    """
    if model.outputs.kind != "embedding" and not model.head:
        model = model.before_classifier()
    return model.with_head(Similarity(references))
