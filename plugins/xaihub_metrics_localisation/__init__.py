"""Localisation: whether a map points at the right place, in mosaics or against masks."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper

_ARRAS = Paper(
    "CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural network explanations",
    2022,
    "https://arxiv.org/abs/2003.07258",
)
_MASKS = "Assumes that the evidence lies inside the mask; if the model uses the background, a faithful map scores low."


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the localisation metrics."""
    return [
        MetricSpec(
            name="grid_pointing",
            target="xaihub_metrics_localisation.grid:GridPointing",
            summary="Fraction of the positive attribution in the right cell of a mosaic of images.",
            paper=Paper(
                "Convolutional Dynamic Alignment Networks for Interpretable Classifications",
                2021,
                "https://arxiv.org/abs/2104.00032",
            ),
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="sum_{i in cell} max(a_i, 0) / sum_i max(a_i, 0); chance is 1 / cells^2",
            variant="Our choice: one mosaic per image at the model's input size, each image scaled down to its cell.",
            cost="1 additional explanation",
            limits="The model may not recognise the shrunken image (its probability is in the details). Coarse maps"
            " lose score by smoothing across cell borders.",
            tags=("localisation",),
        ),
        MetricSpec(
            name="pointing_game",
            target="xaihub_metrics_localisation.masks:PointingGame",
            summary="Whether the map's peak lies on or near the mask.",
            paper=Paper("Top-down Neural Attention by Excitation Backprop", 2016, "https://arxiv.org/abs/1608.00507"),
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="1 if the largest value is within `tolerance` pixels of the mask, else 0; tied peaks are averaged",
            variant="Euclidean distance in pixels of the input. Our choice: the fraction of hits among tied peaks.",
            cost="none",
            limits=f"{_MASKS} Uses a single pixel of the map; large objects are hit by chance.",
            tags=("localisation", "masks", "scale-invariant", "order-of-pixels"),
        ),
        MetricSpec(
            name="relevance_mass",
            target="xaihub_metrics_localisation.masks:RelevanceMass",
            summary="Fraction of the positive attribution inside the mask.",
            paper=_ARRAS,
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="sum_{i in mask} max(a_i, 0) / sum_i max(a_i, 0); chance is the mask's fraction of the image",
            variant="Stated, with channels summed before negative values are dropped. Without negative values this is"
            " also the energy-based pointing game of Score-CAM (arXiv 1910.01279).",
            cost="none",
            limits=_MASKS,
            tags=("localisation", "masks", "scale-invariant"),
        ),
        MetricSpec(
            name="relevance_rank",
            target="xaihub_metrics_localisation.masks:RelevanceRank",
            summary="Fraction of the mask's K pixels that are among the K largest of the map.",
            paper=_ARRAS,
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="|top-K pixels in mask| / K with K = |mask|; chance is the mask's fraction of the image",
            variant="Our choice: signed values, summed over channels; pixels tied at rank K count by the fraction"
            " inside the mask.",
            cost="none",
            limits=_MASKS,
            tags=("localisation", "masks", "scale-invariant", "order-of-pixels"),
        ),
    ]
