"""Fidelity: whether a map's values predict how the score changes with the image; and the cost of the map."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper

_INFINITY = float("inf")
_PERTURBED = "A map whose sums do not vary scores 0, as chance; masked images are out of distribution."


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the metrics."""
    return [
        MetricSpec(
            name="sensitivity_n",
            target="xaihub_metrics_fidelity.correlations:SensitivityN",
            summary="Correlation of the map's sums with drops in the score, over random subsets of several sizes.",
            paper=Paper(
                "Towards better understanding of gradient-based attribution methods for Deep Neural Networks",
                2018,
                "https://arxiv.org/abs/1711.06104",
            ),
            higher_is_better=True,
            bounds=(-1.0, 1.0),
            formula="mean over n of pearson over |S|=n of (sum of the map over S, f(x) - f(x without S))",
            variant="Our choice: cells of a grid instead of pixels; mean over sizes 1 to 0.8 d in equal ratios.",
            cost="sizes * samples forward passes, shared by all maps of an image",
            limits=_PERTURBED,
            tags=("fidelity", "scale-invariant"),
            axes=("fraction of the features removed", "correlation"),
        ),
        MetricSpec(
            name="faithfulness_correlation",
            target="xaihub_metrics_fidelity.correlations:FaithfulnessCorrelation",
            summary="Correlation of the map's sums with drops in the score, over random sets of pixels.",
            paper=Paper(
                "Evaluating and Aggregating Feature-based Model Explanations", 2020, "https://arxiv.org/abs/2005.00631"
            ),
            higher_is_better=True,
            bounds=(-1.0, 1.0),
            formula="pearson over |S|=n of (sum of the map over S, f(x) - f(x without S))",
            variant="Stated: Def. 3. Our choice: single pixels, 5 % of them per set.",
            cost="samples forward passes, shared by all maps of an image",
            limits=f"Single scattered pixels change a deep network's score little and noisily. {_PERTURBED}",
            tags=("fidelity", "scale-invariant"),
        ),
        MetricSpec(
            name="mu_fidelity",
            target="xaihub_metrics_fidelity.correlations:MuFidelity",
            summary="Rank correlation of the map's sums with drops in the score, over random cells of a 9 x 9 grid.",
            paper=Paper(
                "Look at the Variance! Efficient Black-box Explanations with Sobol-based Sensitivity Analysis",
                2021,
                "https://arxiv.org/abs/2111.04138",
            ),
            higher_is_better=True,
            bounds=(-1.0, 1.0),
            formula="spearman over |S|=n of (sum of the map over S, f(x) - f(x without S))",
            variant="Stated: Bhatt et al. 2020, Def. 3, on a grid and with ranks (Fel et al. 2021).",
            cost="samples forward passes, shared by all maps of an image",
            limits=_PERTURBED,
            tags=("fidelity", "scale-invariant"),
        ),
        MetricSpec(
            name="infidelity",
            target="xaihub_metrics_fidelity.infidelity:Infidelity",
            summary="Squared error of the drops in the score that the map predicts for random masked squares.",
            paper=Paper(
                "On the (In)fidelity and Sensitivity of Explanations", 2019, "https://arxiv.org/abs/1901.09392"
            ),
            higher_is_better=False,
            bounds=(0.0, _INFINITY),
            formula="mean over I of (b * I . map - (f(x) - f(x - I)))^2, b >= 0 the best scale or 1",
            variant="Stated: Def. 2.1, with squares or Gaussian noise. Our choice: squares' sizes, best scale b >= 0.",
            cost="samples forward passes, shared by all maps of an image",
            limits="In squared units of the score, so that images with large drops dominate means.",
            tags=("fidelity", "scale-invariant"),
        ),
        MetricSpec(
            name="completeness_gap",
            target="xaihub_metrics_fidelity.completeness:CompletenessGap",
            summary="Relative difference between the sum of the values and the score minus the baseline's score.",
            paper=Paper("Axiomatic Attribution for Deep Networks", 2017, "https://arxiv.org/abs/1703.01365"),
            higher_is_better=False,
            bounds=(0.0, _INFINITY),
            formula="|sum of values - (f(x) - f(baseline))| / |f(x) - f(baseline)|",
            variant="Our choice: the gap the explainer reported, else measured; refused if it claims no completeness.",
            cost="1 forward pass, shared by all maps of an image",
            limits="Only checks the sum: a complete map may have every value in the wrong place.",
            tags=("fidelity", "completeness"),
        ),
        MetricSpec(
            name="cost_forward_passes",
            target="xaihub_metrics_fidelity.cost:CostForwards",
            summary="Forward and backward passes spent on the map.",
            higher_is_better=False,
            bounds=(0.0, _INFINITY),
            formula="forward passes + backward passes, in rows",
            variant="A backward pass counts as one; the pass that fixes the target is not counted.",
            cost="none",
            limits="A pass through part of the network is not counted, or counts as a whole one.",
            tags=("cost",),
        ),
        MetricSpec(
            name="cost_seconds",
            target="xaihub_metrics_fidelity.cost:CostSeconds",
            summary="Seconds spent on the map.",
            higher_is_better=False,
            bounds=(0.0, _INFINITY),
            formula="wall-clock seconds of the call, divided by its number of images",
            variant="As recorded when the map was made.",
            cost="none",
            limits="Depends on the machine, its load and the batch; not comparable between runs.",
            tags=("cost",),
        ),
    ]
