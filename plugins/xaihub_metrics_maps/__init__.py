"""How concentrated a map is: sparseness, complexity, effective complexity."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper

_LIMITS = "Does not show whether the map is right: a single arbitrary pixel scores best."


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the metrics, which use the map alone."""
    return [
        MetricSpec(
            name="sparseness",
            target="xaihub_metrics_maps.method:Sparseness",
            summary="Gini index of the map: 0 for a constant map, near 1 for a single pixel.",
            paper=Paper(
                "Concise Explanations of Neural Networks using Adversarial Training",
                2020,
                "https://arxiv.org/abs/1810.06583",
            ),
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="sum_k (2k - n - 1) v_k / (n sum_k v_k), v = the n absolute values in ascending order",
            variant="Stated; on absolute values of the map summed over channels.",
            cost="none",
            limits=_LIMITS,
            tags=("map", "scale-invariant"),
        ),
        MetricSpec(
            name="complexity",
            target="xaihub_metrics_maps.method:Complexity",
            summary="Entropy of the pixels' relative magnitudes, in nats.",
            paper=Paper(
                "Evaluating and Aggregating Feature-based Model Explanations", 2020, "https://arxiv.org/abs/2005.00631"
            ),
            higher_is_better=False,
            bounds=(0.0, float("inf")),
            formula="-sum_i p_i log p_i, p_i = |a_i| / sum_j |a_j|; at most log n for n pixels",
            variant="Stated; natural logarithm, not divided by log n; on the map summed over channels.",
            cost="none",
            limits=f"{_LIMITS} Comparable only between inputs of the same size.",
            tags=("map", "scale-invariant"),
        ),
        MetricSpec(
            name="effective_complexity",
            target="xaihub_metrics_maps.method:EffectiveComplexity",
            summary="Number of pixels that exceed a small fraction of the map's peak.",
            paper=Paper("On quantitative aspects of model interpretability", 2020, "https://arxiv.org/abs/2007.07584"),
            higher_is_better=False,
            bounds=(1.0, float("inf")),
            formula="#{i : |a_i| > threshold max_j |a_j|}",
            variant="Our choice: the threshold variant, which counts pixels by their magnitude in the map. Stated by"
            " the authors: the number of features that must be kept for the model's loss to stay within a tolerance.",
            cost="none",
            limits=f"{_LIMITS} Depends on the threshold; comparable only between inputs of the same size.",
            tags=("map", "scale-invariant"),
        ),
    ]
