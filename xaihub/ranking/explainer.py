"""The base class of global explainers: what does a model as a whole rely on?"""

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
from xaihub.explainers.explainer import caught
from xaihub.models.model import Model
from xaihub.params import Parametrised
from xaihub.randomness import seeded
from xaihub.ranking.explanation import GlobalExplanation

__all__ = ["GlobalExplainer", "Ranking"]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What `rank` returns.

    Attributes:
        weights: (d,) one weight a feature, larger meaning more important.
        feature: What one feature is, in words: "channel", "position".
        names: (d) names; by default the word and the index.
        layer: The module whose input the features are, if they are that.
        grid: (rows, columns) if the features are cells of a grid over the image.
        history: (epochs, d) weights after each epoch of training, or None.
        details: Further facts for the record, JSON types only.
        warnings: What the reader of the ranking must know.
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
    """One way to rank what a model as a whole relies on. Parameters are declared as in an `Explainer`.

    Attributes:
        needs_images: The ranking is estimated from images; without, it is read off the model alone.

    Example::

        class ColumnNorm(GlobalExplainer):
            def rank(self, model, inputs, labels):
                head = model.structure.head
                weight = model.module.get_submodule(head).weight
                return Ranking(weights=weight.norm(dim=0), feature="channel", layer=head)
    """

    needs_images: ClassVar[bool] = False

    @abstractmethod
    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:
        """Weigh every feature.

        Args:
            model: The model, in evaluation mode.
            inputs: (b, C, H, W) batches in the model's units; may be gone through several times.
            labels: (N,) class indices of all rows in order, or None if they are unknown.

        Raises:
            ExplainerRefused: The ranking would be wrong for this model, or something is missing.
        """

    def explain(
        self,
        model: Model,
        inputs: Tensor | Iterable[Tensor] = (),
        labels: Tensor | None = None,
        *,
        seed: int = 0,
    ) -> GlobalExplanation:
        """Rank the features of a model; the model is left as it was.

        Args:
            model: The model.
            inputs: (N, C, H, W), or batches of it that can be gone through several times.
            labels: (N,) class indices, or None.
            seed: Fixes every random choice.

        Raises:
            ParameterError: A parameter is out of range.
            ExplainerRefused: The method does not apply to this model, lacks images, or its weights are not finite.
        """
        who = self.check_parameters()
        batches: Iterable[Tensor] = [inputs] if isinstance(inputs, Tensor) else inputs
        if self.needs_images and not _any(batches):
            raise ExplainerRefused(f"{who} ranks features by what they do to images", hint="give a folder of them")
        wall, cpu = time.perf_counter(), time.process_time()
        with model.untouched(), model.counting() as counts, seeded(seed), torch.no_grad(), caught() as heard:
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
                "parameters": self.parameters,
                "seed": seed,
                "layer": found.layer,
                "details": dict(found.details),
                "forward_passes": counts.forward_passes,
                "cpu_seconds": round(cpu, 6),
                "seconds": round(wall, 6),
                "device": str(model.device),
                "warnings": list(dict.fromkeys([*found.warnings, *heard])),
                "versions": {name: metadata.version(name) for name in ("xaihub", "torch")},
            },
        )


def _any(batches: Iterable[Tensor]) -> bool:
    return next(iter(batches), None) is not None
