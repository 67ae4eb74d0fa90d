"""Global explainers: the weights of a trained gate, and two post-hoc estimates to compare them with."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from xaihub import ExplainerRefused, GlobalExplainer, Meta, Model, ModelError, Ranking, When, class_scores
from xaihub.files import read_file
from xaihub_scores_activation.gate import ScoresActivation, gates, warnings_of_flatness
from xaihub_scores_activation.placement import GatedHead, GatedInput, GatedPatches, GatedPositions
from xaihub_scores_activation.shap_importance import Algorithm, shap_importance

FIELD = 2**24  # characters
LARGEST_LOG = 2**26  # bytes


class Scores(GlobalExplainer):
    """The softmax weights of the gate, available as soon as the model is trained."""

    readout: Annotated[
        Literal["weight", "weight_x_norm"],
        Meta(description="The gate's weight, or the weight times the norm of the next layer's column (our choice)."),
    ] = "weight"

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:  # noqa: ARG002
        """Return the weights of the model's gate."""
        found = gates(model.module)
        if len(found) != 1:
            raise ExplainerRefused(
                f"model {model.name!r} has {f'{len(found)} gates' if found else 'no gate'}: the ranking is read from"
                " exactly one",
                hint="train a model with 'xaihub train DATA --objective scores_activation'",
            )
        name, gate = found[0]
        started = time.process_time()
        weights = gate.weights()
        gate.ranking()
        cpu = time.process_time() - started
        layer = name.rpartition(".")[0]
        owner = model.module.get_submodule(layer)
        if self.readout == "weight_x_norm":
            if not isinstance(owner, GatedHead):
                raise ExplainerRefused(
                    "only a gate on channels is followed by a linear layer", hint="use readout=weight"
                )
            weights = weights * owner.head.weight.norm(dim=0)
        feature, names, grid = _meaning(owner, gate)
        return Ranking(
            weights=weights,
            feature=feature,
            names=names,
            layer=layer,
            grid=grid,
            details={
                "gain": gate.gain,
                "temperature": gate.temperature,
                "largest_times_mean": gate.largest(),
                "scoring_cpu_seconds": cpu,
            },
            history=_history(model, gate.num_features),
            warnings=warnings_of_flatness(gate.largest()),
        )


def _history(model: Model, width: int) -> Tensor | None:
    """Return the (epochs, d) weights in the run's log next to the model's card, or None without a usable log."""
    try:
        file = Path(model.card.base) / "log.csv"
        text = read_file(file, what="log", error=ModelError, limit=LARGEST_LOG).decode()
        # A row holds d numbers, which exceeds the reader's default limit.
        before = csv.field_size_limit(FIELD)
        try:
            found = [json.loads(row["objective"])["scores"]["weights"] for row in csv.DictReader(io.StringIO(text))]
        finally:
            csv.field_size_limit(before)
        table = torch.tensor(found, dtype=torch.float64)
    except Exception:
        return None  # the log is optional: card and weights define the model
    return table if model.card.base and table.ndim == 2 and table.shape[1] == width else None


def _meaning(owner: nn.Module, gate: ScoresActivation) -> tuple[str, list[str], tuple[int, int] | None]:
    """Return what a feature is, the names of all features, and the grid that they form, if any."""
    if isinstance(owner, (GatedPositions, GatedPatches)):
        rows, columns = owner.grid
        names = [f"row {row}, column {column}" for row in range(rows) for column in range(columns)]
        return ("position" if isinstance(owner, GatedPositions) else "patch"), names, owner.grid
    if isinstance(owner, GatedInput):
        colours = ["red", "green", "blue"] if gate.num_features == 3 else []
        return "input channel", colours or [f"band {index}" for index in range(gate.num_features)], None
    return "channel", [f"channel {index}" for index in range(gate.num_features)], None


class GlobalSHAP(GlobalExplainer):
    """Mean |SHAP value| of the classifier's input channels, from the shap library."""

    needs_images = True

    algorithm: Annotated[Algorithm, Meta(description="shap's permutation or kernel explainer.")] = "permutation"
    rows: Annotated[int, Meta(ge=1, description="Maximum number of images to explain.")] = 20
    background: Annotated[
        int, Meta(ge=1, description="Maximum number of images whose values replace masked channels.")
    ] = 20
    permutations: Annotated[
        int, Meta(ge=1, description="Orders of the channels per image."), When(algorithm="permutation")
    ] = 1
    output: Annotated[
        Literal["probability", "logit"], Meta(description="The outputs that are distributed over the channels.")
    ] = "probability"

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:  # noqa: ARG002
        """Return the mean over images and classes of |SHAP value|."""
        features, head, layer = _classifier_inputs(model, inputs)
        order = torch.randperm(len(features))  # seeded by the base class
        background, rows = features[order[: self.background]], features[order[-self.rows :]]
        started = time.process_time()
        weights = shap_importance(
            lambda table: class_scores(head(table), self.output, model.outputs),
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
        few = len(features) < self.rows + self.background
        warnings = ["some images are both explained and used as background"] if few else []
        return Ranking(weights=weights, feature="channel", layer=layer, details=details, warnings=warnings)


class PermutationImportance(GlobalExplainer):
    """Drop in quality when one input channel of the classifier is shuffled among images, from scikit-learn."""

    needs_images = True

    repeats: Annotated[int, Meta(ge=1, description="Shuffles per channel.")] = 5
    quality: Annotated[
        Literal["log_loss", "accuracy"],
        Meta(description="The quality that drops; on few images accuracy is too coarse for single channels."),
    ] = "log_loss"

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:
        """Return the mean drop in quality per channel."""
        from sklearn.inspection import permutation_importance

        if model.outputs.kind != "multiclass":
            raise ExplainerRefused(f"quality is that of a class among others, but the outputs are {model.outputs.kind}")
        features, head, layer = _classifier_inputs(model, inputs)
        if len(features) < 2:
            raise ExplainerRefused("a single image cannot be shuffled", hint="pass at least two, better hundreds")
        given = labels is not None
        labels = labels if labels is not None else head(features).argmax(1)
        if len(labels) != len(features):
            raise ExplainerRefused(f"{len(features)} images have {len(labels)} labels")
        started = time.process_time()
        found = permutation_importance(
            SimpleNamespace(fit=lambda: None),  # scikit-learn requires an estimator; the scoring knows the classifier
            features.numpy(),
            labels.numpy(),
            scoring=partial(_quality, head, self.quality),
            n_repeats=self.repeats,
            random_state=int(torch.randint(2**31, ())),
        )
        unknown = "labels are unknown, so quality is agreement with the model's own predictions"
        return Ranking(
            weights=torch.from_numpy(found.importances_mean),
            feature="channel",
            layer=layer,
            details={
                "images": len(features),
                "labels": "given" if given else "own predictions",
                "scoring_cpu_seconds": time.process_time() - started,
            },
            warnings=[] if given else [unknown],
        )


def _quality(head: Callable[[Tensor], Tensor], kind: str, _estimator: Any, x: Any, y: Any) -> float:
    labels = torch.from_numpy(y)
    logs = class_scores(head(torch.from_numpy(np.ascontiguousarray(x))).double(), "log_probability")
    right = logs[torch.arange(len(y)), labels] if kind == "log_loss" else (logs.argmax(1) == labels).double()
    return float(right.mean())


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
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().float().cpu()))
    try:
        for batch in inputs:
            model.predict(batch)
    finally:
        handle.remove()
    features = torch.cat(seen)
    if features.ndim != 2:
        raise ExplainerRefused(
            f"the classifier {name!r} of {model.name!r} takes inputs of shape {tuple(features.shape[1:])}, not one"
            " row of channels per image"
        )

    def logits(table: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = head(table.to(model.device))
        return out.float().cpu()

    return features, logits, name
