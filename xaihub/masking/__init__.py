"""The masking engine, which all perturbation methods and metrics use.

`Features` group pixels, a `Removal` replaces masked pixels, and `masked_forward_passes` evaluates a stream of masks in
batches that fit into memory. `Coalitions` are random subsets of features, with weights that turn their scores into
Shapley values.
"""

from xaihub.masking.coalitions import (
    CERTAIN,
    Coalitions,
    balanced_coalitions,
    binomial_sizes,
    block_of,
    draw_coalitions,
    draw_orders,
    every_coalition,
    shapley_sizes,
    shapley_weights,
)
from xaihub.masking.engine import MaskedBatch, batch_rows, coalition_scores, masked_forward_passes
from xaihub.masking.features import Features, Segments, Windows, make_features
from xaihub.masking.removal import BaselineName, Fill, Inpaint, Removal, baseline_image, make_removal
from xaihub.masking.sizes import SizeSearch
from xaihub.masking.variants import variant_scores

__all__ = [
    "CERTAIN",
    "BaselineName",
    "Coalitions",
    "Features",
    "Fill",
    "Inpaint",
    "MaskedBatch",
    "Removal",
    "Segments",
    "SizeSearch",
    "Windows",
    "balanced_coalitions",
    "baseline_image",
    "batch_rows",
    "binomial_sizes",
    "block_of",
    "coalition_scores",
    "draw_coalitions",
    "draw_orders",
    "every_coalition",
    "make_features",
    "make_removal",
    "masked_forward_passes",
    "shapley_sizes",
    "shapley_weights",
    "variant_scores",
]
