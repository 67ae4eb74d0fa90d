"""Global explainers: the weights of a trained gate, and two estimates in the same form to compare them with."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused, GlobalExplainer, Meta, Model, Ranking, class_scores
from xaihub_scores_activation.layer import ScoresActivation, gates
from xaihub_scores_activation.shapley import Algorithm, shap_importance
from xaihub_scores_activation.sites import GatedHead, GatedInput, GatedPatches, GatedPositions

__all__ = ["GlobalSHAP", "PermutationImportance", "Scores"]

FLAT = 1.5  # a largest weight below so many times the mean ranks hardly anything
FIELD = 2**24  # characters


class Scores(GlobalExplainer):
    """The softmax weights of the gate, which are there as soon as the model is trained."""

    readout: Annotated[
        Literal["weight", "weight_x_norm"],
        Meta(description="The gate's weight, or that times the norm of the next layer's column (our second reading)."),
    ] = "weight"

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:  # noqa: ARG002
        """Return the weights of the model's one gate."""
        found = gates(model.module)
        if len(found) != 1:
            raise ExplainerRefused(
                f"model {model.name!r} has {len(found) or 'no'} gates whose weights could be read, instead of one",
                hint="train one with 'xaihub train --objective scores_activation'",
            )
        name, gate = found[0]
        started = time.process_time()
        weights = gate.weights()
        gate.ranking()
        cpu = time.process_time() - started
        owner = model.module.get_submodule(name.rpartition(".")[0])
        if self.readout == "weight_x_norm":
            if not isinstance(owner, GatedHead):
                raise ExplainerRefused("only a gate on channels is followed by a linear layer", hint="readout=weight")
            weights = weights * owner.head.weight.norm(dim=0)
        feature, names, grid = _meaning(owner, gate)
        largest = float(gate.weights().max()) * gate.num_features
        flat = f"the ranking is nearly flat: the largest weight is {largest:.2f} times the mean; train longer"
        return Ranking(
            weights=weights,
            feature=feature,
            names=names,
            layer=name.rpartition(".")[0],
            grid=grid,
            details={
                "gain": gate.gain,
                "temperature": gate.temperature,
                "largest_times_mean": largest,
                "scoring_cpu_seconds": cpu,
            },
            history=_history(model, gate.num_features),
            warnings=[flat] if largest < FLAT else [],
        )


def _history(model: Model, width: int) -> Tensor | None:
    """Return the (epochs, d) weights that the run's log holds beside the model's card, or None if there is no log."""
    try:
        with (Path(model.card.base) / "log.csv").open(newline="", encoding="utf-8") as stream:
            # A row holds d numbers, which is longer than what the reader takes for a damaged file by itself.
            before = csv.field_size_limit(FIELD)
            try:
                found = [json.loads(row["objective"])["scores"]["weights"] for row in csv.DictReader(stream)]
            finally:
                csv.field_size_limit(before)
        table = torch.tensor(found, dtype=torch.float64)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None  # a log is a convenience: the card and its weights are what was trained
    return table if model.card.base and table.ndim == 2 and table.shape[1] == width else None


def _meaning(owner: nn.Module, gate: ScoresActivation) -> tuple[str, list[str], tuple[int, int] | None]:
    """Return what a feature is, the names of all, and the grid that they form, if any."""
    if isinstance(owner, (GatedPositions, GatedPatches)):
        rows, columns = owner.grid
        names = [f"row {row}, column {column}" for row in range(rows) for column in range(columns)]
        return ("position" if isinstance(owner, GatedPositions) else "patch"), names, owner.grid
    if isinstance(owner, GatedInput):
        colours = ["red", "green", "blue"] if gate.num_features == 3 else []
        return "input channel", colours or [f"band {index}" for index in range(gate.num_features)], None
    return "channel", [f"channel {index}" for index in range(gate.num_features)], None


class GlobalSHAP(GlobalExplainer):
    """SHAP values of the classifier's input channels, by the shap library; their mean size ranks the channels."""

    needs_images = True

    algorithm: Annotated[Algorithm, Meta(description="shap's permutation or kernel explainer.")] = "permutation"
    rows: Annotated[int, Meta(ge=1, description="Images that are explained, at most.")] = 20
    background: Annotated[int, Meta(ge=1, description="Images that stand for absent channels, at most.")] = 20
    permutations: Annotated[int, Meta(ge=1, description="Orders of the channels an image.")] = 1
    output: Annotated[Literal["probability", "logit"], Meta(description="The outputs that are shared out.")] = (
        "probability"
    )

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:  # noqa: ARG002
        """Return the mean over images and classes of |SHAP value|."""
        features, head, layer = _classifier_inputs(model, inputs)
        order = torch.randperm(len(features))  # seeded by the base class
        background, rows = features[order[: self.background]], features[order[-self.rows :]]

        def predict(table: Tensor) -> Tensor:
            return class_scores(head(table), self.output)

        started = time.process_time()
        weights = shap_importance(
            predict,
            background,
            rows,
            algorithm=self.algorithm,
            permutations=self.permutations,
            seed=int(torch.randint(2**31, ())),
        )
        details = {
            "rows": len(rows),
            "background": len(background),
            "scoring_cpu_seconds": time.process_time() - started,
        }
        shared = [] if len(features) >= self.rows + self.background else ["some images serve as rows and background"]
        return Ranking(weights=weights, feature="channel", layer=layer, details=details, warnings=shared)


class PermutationImportance(GlobalExplainer):
    """The loss of quality when one input channel of the classifier is shuffled among images, by scikit-learn."""

    needs_images = True

    repeats: Annotated[int, Meta(ge=1, description="Shuffles of each channel.")] = 5
    quality: Annotated[
        Literal["log_loss", "accuracy"],
        Meta(description="What is lost; accuracy on few images is too coarse for single channels."),
    ] = "log_loss"

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:
        """Return the mean loss of quality of each channel."""
        from sklearn.inspection import permutation_importance

        features, head, layer = _classifier_inputs(model, inputs)
        if len(features) < 2:
            raise ExplainerRefused("one image cannot be shuffled", hint="give at least two, better hundreds")
        said = []
        if labels is None:
            labels = head(features).argmax(1)
            said.append("labels are unknown, so the quality is agreement with the model's own decisions")
        if len(labels) != len(features):
            raise ExplainerRefused(f"{len(features)} images have {len(labels)} labels")
        truth = labels.numpy()
        started = time.process_time()
        found = permutation_importance(
            _Estimator(head),
            features.numpy(),
            truth,
            scoring=_negative_log_loss if self.quality == "log_loss" else _accuracy,
            n_repeats=self.repeats,
            random_state=int(torch.randint(2**31, ())),
        )
        return Ranking(
            weights=torch.from_numpy(found.importances_mean),
            feature="channel",
            layer=layer,
            details={
                "images": len(features),
                "labels": "given" if not said else "own decisions",
                "scoring_cpu_seconds": time.process_time() - started,
            },
            warnings=said,
        )


class _Estimator:
    """The classifier in the form that scikit-learn asks for."""

    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        self.head = head

    def fit(self, _x: Any, _y: Any) -> _Estimator:
        return self

    def probabilities(self, x: Any) -> Tensor:
        return self.head(torch.from_numpy(np.ascontiguousarray(x))).double().log_softmax(1)


def _negative_log_loss(estimator: _Estimator, x: Any, y: Any) -> float:
    return float(estimator.probabilities(x)[torch.arange(len(y)), torch.from_numpy(y)].mean())


def _accuracy(estimator: _Estimator, x: Any, y: Any) -> float:
    return float((estimator.probabilities(x).argmax(1) == torch.from_numpy(y)).double().mean())


def _classifier_inputs(model: Model, inputs: Iterable[Tensor]) -> tuple[Tensor, Callable[[Tensor], Tensor], str]:
    """Return the (N, d) inputs of the model's classifier on the CPU, the classifier with its gate, and its name."""
    name = model.structure.head
    if name is None:
        raise ExplainerRefused(f"the classifier of {model.name!r} was not found")
    head = model.module.get_submodule(name)
    owner = model.module.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, GatedHead):  # the gate belongs to the classifier
        name, head = name.rpartition(".")[0], owner
    seen: list[Tensor] = []

    def keep(_module: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(given[0].detach().float().cpu())

    handle = head.register_forward_pre_hook(keep)
    try:
        for batch in inputs:
            model.predict(batch)
    finally:
        handle.remove()
    features = torch.cat(seen)
    if features.ndim != 2:
        raise ExplainerRefused(
            f"the classifier {name!r} of {model.name!r} takes inputs of the shape {tuple(features.shape[1:])}, not one"
            " row of channels an image"
        )

    def logits(table: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = head(table.to(model.device))
        return out.float().cpu()

    return features, logits, name
