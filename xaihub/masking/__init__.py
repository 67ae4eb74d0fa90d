"""The masking engine: every perturbation method and metric stands on it.

`Features` say which pixels belong together, a `Removal` says what hidden pixels become, and
`masked_forwards` evaluates any stream of masks in batches that fit into memory.
"""

from xaihub.masking.engine import MaskedBatch, batch_rows, coalition_scores, masked_forwards
from xaihub.masking.features import Features, Segments, Windows, make_features
from xaihub.masking.removal import BaselineName, Fill, Inpaint, Removal, baseline_image, make_removal

__all__ = [
    "BaselineName",
    "Features",
    "Fill",
    "Inpaint",
    "MaskedBatch",
    "Removal",
    "Segments",
    "Windows",
    "baseline_image",
    "batch_rows",
    "coalition_scores",
    "make_features",
    "make_removal",
    "masked_forwards",
]
