"""The base class of global explainers, which rank the features that a model as a whole relies on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, ClassVar

import torch
from torch import Tensor

from xaihub.errors import ExplainerRefused, ParameterError
from xaihub.models.model import Model
from xaihub.notices import caught
from xaihub.params import Parametrised
from xaihub.randomness import seeded
from xaihub.ranking.explanation import GlobalExplanation
from xaihub.records import plain


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The result of `rank`.

    Attributes:
        weights: (d,) one weight per feature; larger means more important.
        feature: The kind of feature, in words: "channel", "position".
        names: (d) names; by default the kind and the index.
        layer: The module whose input the features are, if any.
        grid: (rows, columns) if the features are cells of a grid over the image.
        history: (epochs, d) weights after each epoch of training, or None.
        details: Further facts for the record, JSON types only.
        warnings: Warnings for the reader of the ranking.
    """

    weights: Tensor
    feature: str
    names: Sequence[str] = ()
    layer: str = ""
    grid: tuple[int, int] | None = None
    history: Tensor | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


class GlobalExplainer(Parametrised, ABC):
    """One way to rank the features that a model as a whole relies on. Parameters are declared as in an `Explainer`.

    Attributes:
        needs_images: Whether the ranking is estimated from images, and not from the model alone.

    Example::

        class ColumnNorm(GlobalExplainer):
            def rank(self, model, inputs, labels):
                head = model.structure.head
                weight = model.module.get_submodule(head).weight
                return Ranking(weights=weight.norm(dim=0), feature="channel", layer=head)
    """

    needs_images: ClassVar[bool] = False
    noun: ClassVar[str] = "global explainer"

    @abstractmethod
    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:
        """Compute a weight for every feature.

        Args:
            model: The model, in evaluation mode.
            inputs: (b, C, H, W) batches in the model's units; can be iterated several times.
            labels: (N,) class indices of all rows in order, or None if unknown.

        Raises:
            ExplainerRefused: The method is not valid for this model, or an input is missing.
        """

    def explain(
        self,
        model: Model,
        inputs: Tensor | Iterable[Tensor] = (),
        labels: Tensor | None = None,
        *,
        seed: int = 0,
    ) -> GlobalExplanation:
        """Rank the features of a model, and leave the model unchanged.

        Args:
            model: The model.
            inputs: (N, C, H, W), or batches of it that can be iterated several times.
            labels: (N,) class indices, or None.
            seed: Seed of all random choices.

        Raises:
            ParameterError: A parameter is out of range.
            ExplainerRefused: The method is not valid for this model, images are missing, or a weight is not finite.
        """
        who = self.check_parameters()
        batches: Iterable[Tensor] = [inputs] if isinstance(inputs, Tensor) else inputs
        if self.needs_images and next(iter(batches), None) is None:
            raise ExplainerRefused(f"{who} needs images to rank features", hint="give a folder of images")
        wall, cpu = time.perf_counter(), time.process_time()
        with (
            model.untouched(by=self),
            model.counting() as counts,
            seeded(seed),
            torch.no_grad(),
            caught() as heard,
        ):
            found = self.rank(model, batches, labels)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        weights = found.weights.detach().double().cpu()
        if weights.ndim != 1 or not len(weights):
            raise ExplainerRefused(f"{who} returned weights of the shape {tuple(weights.shape)}")
        if not bool(weights.isfinite().all()):
            raise ExplainerRefused(f"{who} returned NaN or infinite weights on {model.name!r}")
        names = tuple(found.names) or tuple(f"{found.feature} {index}" for index in range(len(weights)))
        if len(names) != len(weights):
            raise ParameterError(f"{who} returned {len(names)} names for {len(weights)} features")
        return GlobalExplanation(
            runs=weights.unsqueeze(0),
            names=names,
            feature=found.feature,
            method=who,
            history=found.history,
            grid=found.grid,
            metadata={
                "model": model.name,
                "weights_sha256": model.weights_hash,
                "plugin": self.origin.record(),
                "parameters": self.parameters,
                "seed": seed,
                "layer": str(found.layer),
                "details": plain(dict(found.details)),
                "forward_passes": counts.forward_passes,
                "cpu_seconds": round(cpu, 6),
                "seconds": round(wall, 6),
                "device": str(model.device),
                "warnings": list(dict.fromkeys([*map(str, found.warnings), *heard])),
                "versions": {name: metadata.version(name) for name in ("xaihub", "torch")},
            },
        )
