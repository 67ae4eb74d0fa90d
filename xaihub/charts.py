"""Charts of rankings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from xaihub.global_explanation import GlobalExplanation

__all__ = ["ranking_chart"]

BAR, FAINT = "#35608d", "#8a8a90"


def ranking_chart(explanation: GlobalExplanation, *, top: int = 20) -> Figure:
    """Draw the `top` features as bars with their intervals; beside them all weights in order, or a map over a grid."""
    shown = explanation.ranking[:top]
    figure = Figure(figsize=(10, max(3.0, 1.2 + 0.27 * len(shown))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    weights = np.array([item.weight for item in shown])
    errors = None
    if len(explanation.runs) > 1:
        low, high = np.array([item.low for item in shown]), np.array([item.high for item in shown])
        errors = np.stack([weights - low, high - weights])
    places = np.arange(len(shown))
    left.barh(places, weights, color=BAR, xerr=errors, error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "black"})
    left.set_yticks(places, [_short(item.name, 34) for item in shown], fontsize=8)
    left.invert_yaxis()
    uniform = float(explanation.weights.mean())
    left.axvline(uniform, color=FAINT, linestyle="--", linewidth=1)
    left.set_xlabel("weight (dashed: the mean over all features)", fontsize=8)
    if explanation.grid is not None:
        image = right.imshow(explanation.weights.reshape(explanation.grid).numpy(), cmap="inferno")
        right.set_title("by place in the image", fontsize=9)
        figure.colorbar(image, ax=right, shrink=0.8)
    else:
        line = explanation.weights[explanation.order].numpy()
        right.plot(np.arange(1, len(line) + 1), line, color=BAR)
        right.axhline(uniform, color=FAINT, linestyle="--", linewidth=1)
        right.set_xlabel(f"rank among {len(line)}", fontsize=8)
        right.set_title("all weights in order", fontsize=9)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
    figure.suptitle(_short(explanation.claim, 110), fontsize=10)
    return figure


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
