"""Fidelity: whether a map's values foretell what the model does when the image changes; and what the map cost."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper

_INFINITY = float("inf")
_PERTURBED = "a map with no variation over the subsets scores 0, as chance; removal takes the image off the data"


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the fidelity metrics and the costs."""
    return [
        MetricSpec(
            name="sensitivity_n",
            target="xaihub_metrics_fidelity.correlations:SensitivityN",
            summary="Correlation of the map's sums and the drops of the score, at several numbers of removed features.",
            paper=Paper(
                title="Towards better understanding of gradient-based attribution methods for Deep Neural Networks",
                year=2018,
                url="https://arxiv.org/abs/1711.06104",
            ),
            higher_is_better=True,
            bounds=(-1.0, 1.0),
            formula="mean over n of pearson over |S|=n of (sum of the map over S, f(x) - f(x without S))",
            variant="cells of a grid instead of pixels; mean over sizes 1 to 0.8 d in equal ratios",
            cost="sizes * samples forward passes an image, shared by all maps",
            limits=_PERTURBED,
            tags=("fidelity", "scale-invariant"),
            axes=("share of the features removed", "correlation"),
        ),
        MetricSpec(
            name="faithfulness_correlation",
            target="xaihub_metrics_fidelity.correlations:FaithfulnessCorrelation",
            summary="Correlation of the map's sums and the drops of the score over random sets of pixels.",
            paper=Paper(
                title="Evaluating and Aggregating Feature-based Model Explanations",
                year=2020,
                url="https://arxiv.org/abs/2005.00631",
            ),
            higher_is_better=True,
            bounds=(-1.0, 1.0),
            formula="pearson over |S|=n of (sum of the map over S, f(x) - f(x without S))",
            variant="Def. 3 on single pixels; n is a share of all pixels",
            cost="samples forward passes an image, shared by all maps",
            limits=f"single scattered pixels change a deep network's score little and noisily; {_PERTURBED}",
            tags=("fidelity", "scale-invariant"),
        ),
        MetricSpec(
            name="mu_fidelity",
            target="xaihub_metrics_fidelity.correlations:MuFidelity",
            summary="Rank correlation of the map's sums and the drops of the score over random cells of a 9 x 9 grid.",
            paper=Paper(
                title="Look at the Variance! Efficient Black-box Explanations with Sobol-based Sensitivity Analysis",
                year=2021,
                url="https://arxiv.org/abs/2111.04138",
            ),
            higher_is_better=True,
            bounds=(-1.0, 1.0),
            formula="spearman over |S|=n of (sum of the map over S, f(x) - f(x without S))",
            variant="Bhatt et al. 2020 Def. 3 on a grid, with ranks, as Fel et al. 2021",
            cost="samples forward passes an image, shared by all maps",
            limits=_PERTURBED,
            tags=("fidelity", "scale-invariant"),
        ),
        MetricSpec(
            name="infidelity",
            target="xaihub_metrics_fidelity.infidelity:Infidelity",
            summary="Squared error of the drops of the score that the map foretells for random removed squares.",
            paper=Paper(
                title="On the (In)fidelity and Sensitivity of Explanations",
                year=2019,
                url="https://arxiv.org/abs/1901.09392",
            ),
            higher_is_better=False,
            bounds=(0.0, _INFINITY),
            formula="mean over I of (b * I . map - (f(x) - f(x - I)))^2, b >= 0 the best scale or 1",
            variant="squares of random place and side become the baseline; or Gaussian noise; optimal scaling, b >= 0",
            cost="samples forward passes an image, shared by all maps",
            limits="in squared units of the score, so images with large drops weigh most in a mean",
            tags=("fidelity", "scale-invariant"),
        ),
        MetricSpec(
            name="completeness_gap",
            target="xaihub_metrics_fidelity.completeness:CompletenessGap",
            summary="Relative difference of the sum of the values and the score minus the baseline's.",
            paper=Paper(
                title="Axiomatic Attribution for Deep Networks", year=2017, url="https://arxiv.org/abs/1703.01365"
            ),
            higher_is_better=False,
            bounds=(0.0, _INFINITY),
            formula="|sum of values - (f(x) - f(baseline))| / |f(x) - f(baseline)|",
            variant="the gap that the explainer reported, else measured; refused where completeness is not claimed",
            cost="1 forward pass an image and baseline",
            limits="sees the sum only: a complete map may have every value in the wrong place",
            tags=("fidelity", "completeness"),
        ),
        MetricSpec(
            name="cost_forward_passes",
            target="xaihub_metrics_fidelity.cost:CostForwards",
            summary="Forward and backward passes that the map took.",
            higher_is_better=False,
            bounds=(0.0, _INFINITY),
            formula="forward passes + backward passes, in rows",
            variant="a backward pass counts as one; the pass that fixes the target is not counted",
            cost="none",
            limits="a pass over a part of the network is not counted, or counts as much as a whole one",
            tags=("cost",),
        ),
        MetricSpec(
            name="cost_seconds",
            target="xaihub_metrics_fidelity.cost:CostSeconds",
            summary="Seconds that the map took.",
            higher_is_better=False,
            bounds=(0.0, _INFINITY),
            formula="wall-clock seconds of the call, divided by the images in it",
            variant="as recorded when the map was made",
            cost="none",
            limits="depends on the machine, its load and the batch; not comparable between runs",
            tags=("cost",),
        ),
    ]
