"""Metrics that mask or reveal the image in the map's order and record the model's score."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper

_RISE = Paper(
    "RISE: Randomized Input Sampling for Explanation of Black-box Models", 2018, "https://arxiv.org/abs/1806.07421"
)
_GRAD_CAM_PLUS_PLUS = Paper(
    "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks", 2017, "https://arxiv.org/abs/1710.11063"
)
_SHARED = "steps - 1 forward passes, shared by metrics with equal steps, unit and baseline; 1 for the baseline alone"


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the metrics."""
    return [
        MetricSpec(
            name="insertion",
            target="xaihub_metrics_curves.areas:Insertion",
            summary="Area under the score while the image is revealed, highest values of the map first.",
            paper=_RISE,
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="trapezoid area of f(x_k) over k/n; x_k shows the k highest-ranked pixels on the baseline",
            variant="Stated: the protocol and the blurred baseline. Our choice: 28 equal steps.",
            cost=_SHARED,
            limits="Depends on the baseline; blurred images are out of distribution as well.",
            tags=("faithfulness", "scale-invariant", "order-of-pixels"),
        ),
        MetricSpec(
            name="deletion",
            target="xaihub_metrics_curves.areas:Deletion",
            summary="Area under the score while the image is masked, highest values of the map first.",
            paper=_RISE,
            higher_is_better=False,
            bounds=(0.0, 1.0),
            formula="trapezoid area of f(x_k) over k/n; x_k masks the k highest-ranked pixels with the baseline",
            variant="Stated: the protocol and the zero baseline. Our choice: 28 equal steps.",
            cost=_SHARED,
            limits="Favours scattered maps: speckle moves an image out of distribution fastest.",
            tags=("faithfulness", "scale-invariant", "order-of-pixels"),
        ),
        MetricSpec(
            name="aopc",
            target="xaihub_metrics_curves.steps:AOPC",
            summary="Mean drop in the score while the highest-ranked pixels are masked.",
            paper=Paper(
                "Evaluating the visualization of what a Deep Neural Network has learned",
                2015,
                "https://arxiv.org/abs/1509.06321",
            ),
            higher_is_better=True,
            bounds=(-1.0, 1.0),
            formula="1/(L+1) sum_{k=0..L} [f(x) - f(x_k)]; x_k masks the k highest-ranked of n pieces",
            variant="Our choice: on the points of the deletion curve; order=difference is the gap of LeRF and MoRF.",
            cost=f"{_SHARED}; twice that for order=difference",
            limits="As for deletion.",
            tags=("faithfulness", "scale-invariant", "order-of-pixels"),
            axes=("fraction of the image masked", "drop in the score"),
        ),
        MetricSpec(
            name="log_odds",
            target="xaihub_metrics_curves.steps:LogOdds",
            summary="Mean change in the class's log-odds while the highest-ranked pixels are masked.",
            paper=Paper(
                "L-Shapley and C-Shapley: Efficient Model Interpretation for Structured Data",
                2018,
                "https://arxiv.org/abs/1808.02610",
            ),
            higher_is_better=False,
            formula="1/L sum_{k=1..L} [o(x_k) - o(x)], o = log p/(1-p); x_k masks the k highest-ranked of n pieces",
            variant="Our choice: mean over the curve's points up to 20 % masked; form=probability uses log p.",
            cost=_SHARED,
            limits="Unbounded for confident predictions, which therefore dominate means over images.",
            tags=("faithfulness", "scale-invariant", "order-of-pixels"),
            axes=("fraction of the image masked", "change in the log-odds"),
        ),
        MetricSpec(
            name="monotonicity",
            target="xaihub_metrics_curves.steps:Monotonicity",
            summary="Fraction of steps at which revealing more relevant pixels does not lower the score.",
            paper=Paper(
                "One Explanation Does Not Fit All: A Toolkit and Taxonomy of AI Explainability Techniques",
                2019,
                "https://arxiv.org/abs/1909.03012",
            ),
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="mean_k [f(x_{k+1}) >= f(x_k)], k = 1..L-1; x_k shows the k/n least relevant pixels",
            variant="Our choice: signed order, fraction of steps; summary=all is the yes or no stated by the authors.",
            cost=_SHARED,
            limits="Ignores magnitudes: noise around a flat score counts as much as a steep change.",
            tags=("faithfulness", "positive-evidence", "scale-invariant"),
            axes=("fraction of the image shown", "score"),
        ),
        MetricSpec(
            name="average_drop",
            target="xaihub_metrics_curves.confidence:AverageDrop",
            summary="Fraction of the class's probability lost when the image is multiplied by the map.",
            paper=_GRAD_CAM_PLUS_PLUS,
            higher_is_better=False,
            bounds=(0.0, 1.0),
            formula="max(0, p(x) - p(m * x)) / p(x); m = (map - min) / (max - min)",
            variant="Our choice: a fraction instead of percent; the product is taken in the model's units.",
            cost="1 forward pass, shared with increase_in_confidence",
            limits="A map that is 1 nearly everywhere scores best; read it together with complexity or sparseness.",
            tags=("faithfulness", "scale-invariant"),
        ),
        MetricSpec(
            name="increase_in_confidence",
            target="xaihub_metrics_curves.confidence:IncreaseInConfidence",
            summary="Whether multiplying the image by the map increases the class's probability.",
            paper=_GRAD_CAM_PLUS_PLUS,
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="1 if p(m * x) > p(x) else 0; m = (map - min) / (max - min)",
            variant="0 or 1 per image; the mean over images is the number stated by the authors.",
            cost="1 forward pass, shared with average_drop",
            limits="One bit per image: distinguishing two methods takes hundreds of images.",
            tags=("faithfulness", "scale-invariant"),
        ),
        MetricSpec(
            name="road",
            target="xaihub_metrics_curves.road:ROAD",
            summary="Drop in the score when the highest-ranked pixels are imputed, compared with the lowest-ranked.",
            paper=Paper(
                "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
                2022,
                "https://arxiv.org/abs/2202.00449",
            ),
            higher_is_better=True,
            bounds=(-1.0, 1.0),
            formula="mean over percentiles of [p(x without the lowest) - p(x without the highest)] / 2",
            variant="Stated: noisy linear imputation. Our choice: the score of one image, not accuracy over a set.",
            cost="2 forward passes and 2 sparse solves per percentile (one side: 1 and 1); 9 percentiles by default",
            limits="A smooth fill still reveals the outline of the imputed region.",
            tags=("faithfulness", "scale-invariant", "order-of-pixels"),
            axes=("percentage of pixels imputed", "drop in the score"),
        ),
    ]
