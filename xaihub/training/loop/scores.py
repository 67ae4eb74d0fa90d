"""Accuracy and calibration of a classifier on the validation images, by torchmetrics."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassCalibrationError, MulticlassStatScores

from xaihub.models.outputs import class_scores

BINS = 15


class Scores:
    """Collects the predictions of all validation batches, and those of other processes at the end."""

    def __init__(self, classes: int, device: torch.device) -> None:
        """Start without predictions."""
        self._metrics = MetricCollection(
            {
                "counts": MulticlassStatScores(classes, average="none", validate_args=False),
                "calibration": MulticlassCalibrationError(classes, n_bins=BINS, norm="l1", validate_args=False),
            },
            compute_groups=False,
        ).to(device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add (B, K) logits and (B,) class indices."""
        self._metrics.update(class_scores(logits.detach().float(), "probability"), labels)

    def values(self) -> dict[str, float | list[float | None]]:
        """Return the scores of all predictions.

        "accuracy" is the fraction of images that are classified correctly, "class_accuracy" that of each class (None
        for a class without images), "balanced_accuracy" its mean over classes, and "calibration_error" the expected
        calibration error: the mean gap between confidence and accuracy, in 15 bins of equal width.
        """
        found = self._metrics.compute()
        right, _, _, _, support = found["counts"].double().cpu().unbind(1)
        seen = support > 0
        of_class = torch.where(seen, right / support.clamp(min=1), torch.nan)
        return {
            "accuracy": float(right.sum() / support.sum()),
            "balanced_accuracy": float(of_class[seen].mean()),
            "class_accuracy": [
                round(value, 6) if known else None
                for value, known in zip(of_class.tolist(), seen.tolist(), strict=True)
            ],
            "calibration_error": float(found["calibration"]),
        }
