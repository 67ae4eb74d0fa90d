"""How well patch scores predict the outputs of masked held-out images: a figure of training, its card and every map."""

from __future__ import annotations

from torch import Tensor

from xaihub_shapley.losses import shapley_loss

COALITIONS = 8  # per validation image
R2 = "patch_score_r2"  # the figure's name in the log and on the card
FAITHFUL = 0.5  # our choice: below this R2 a map of patch scores needs its correction
REFINE = "refine=128"


def errors(phi: Tensor, values: Tensor, shown: Tensor) -> dict[str, float]:
    """Return the mean squared error of summed patch scores against values, and the values' variance.

    Both are means over classes, coalitions and images; the variance is taken within each image and class. Shapes are
    those of `shapley_loss`, whose empty coalition is worth 0 here.
    """
    spread = values - values.mean(1, keepdim=True)
    return {"masked_error": float(shapley_loss(phi, values, shown)), "masked_variance": float(spread.square().mean())}


def r2(error: float, variance: float) -> dict[str, float]:
    """Return the fraction of the variance that patch scores predict, by its name; nothing without variance."""
    return {R2: 1 - error / variance} if variance > 0 else {}


def describe(found: float) -> str:
    """Return the figure in words, with what to do if it is low."""
    text = f"patch scores predict the outputs of masked held-out images with R2 {found:.2f}"
    return text if found >= FAITHFUL else f"{text}: correct the maps by {REFINE}, or train for longer"
