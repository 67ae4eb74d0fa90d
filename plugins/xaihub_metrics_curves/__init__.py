"""Metrics that hide or show the image in the map's order, and watch the model's score."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper

_RISE = Paper(
    title="RISE: Randomized Input Sampling for Explanation of Black-box Models",
    year=2018,
    url="https://arxiv.org/abs/1806.07421",
)
_GRAD_CAM_PLUS_PLUS = Paper(
    title="Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
    year=2017,
    url="https://arxiv.org/abs/1710.11063",
)
_SHARED = "steps - 1 forward passes, shared with the other metrics of the same steps, unit and baseline; 1 an image"


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the areas under curves, what is read off the same curves, the drop of confidence, and ROAD."""
    return [
        MetricSpec(
            name="insertion",
            target="xaihub_metrics_curves.areas:Insertion",
            summary="Area under the score while the image is shown, best pixels first.",
            paper=_RISE,
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="trapezoid area of f(x_k) over k/n; x_k shows the k best pixels on the baseline",
            variant="The paper's protocol with 28 steps; the baseline is a blurred image.",
            cost=_SHARED,
            limits="Depends on the baseline; a blurred image is itself off the data the model knows.",
            tags=("faithfulness", "scale-invariant", "order-of-pixels"),
        ),
        MetricSpec(
            name="deletion",
            target="xaihub_metrics_curves.areas:Deletion",
            summary="Area under the score while the image is hidden, best pixels first.",
            paper=_RISE,
            higher_is_better=False,
            bounds=(0.0, 1.0),
            formula="trapezoid area of f(x_k) over k/n; x_k hides the k best pixels with the baseline",
            variant="The paper's protocol with 28 steps; the baseline is zero in the model's units.",
            cost=_SHARED,
            limits="Scattered maps profit: speckle pushes an image off the data fastest.",
            tags=("faithfulness", "scale-invariant", "order-of-pixels"),
        ),
        MetricSpec(
            name="aopc",
            target="xaihub_metrics_curves.steps:AOPC",
            summary="Mean fall of the score while the best pixels are hidden.",
            paper=Paper(
                title="Evaluating the visualization of what a Deep Neural Network has learned",
                year=2015,
                url="https://arxiv.org/abs/1509.06321",
            ),
            higher_is_better=True,
            bounds=(-1.0, 1.0),
            formula="1/(L+1) sum_{k=0..L} [f(x) - f(x_k)]; x_k hides the best k/n of the image",
            variant="MoRF, on the points of the deletion curve; order=difference is the gap between LeRF and MoRF.",
            cost=f"{_SHARED}; twice that for order=difference",
            limits="As for deletion.",
            tags=("faithfulness", "scale-invariant", "order-of-pixels"),
            axes=("share of the image changed", "fall of the score"),
        ),
        MetricSpec(
            name="log_odds",
            target="xaihub_metrics_curves.steps:LogOdds",
            summary="Mean change of the class's log-odds while the best pixels are hidden.",
            paper=Paper(
                title="L-Shapley and C-Shapley: Efficient Model Interpretation for Structured Data",
                year=2018,
                url="https://arxiv.org/abs/1808.02610",
            ),
            higher_is_better=False,
            formula="1/L sum_{k=1..L} [o(x_k) - o(x)], o = log p/(1-p); x_k hides the best k/n of the image",
            variant="Mean over the curve's points up to 20 % hidden; form=probability takes log p instead.",
            cost=_SHARED,
            limits="Grows without bound for a confident model, so means over images follow the confident ones.",
            tags=("faithfulness", "scale-invariant", "order-of-pixels"),
            axes=("share of the image changed", "change of the log odds"),
        ),
        MetricSpec(
            name="monotonicity",
            target="xaihub_metrics_curves.steps:Monotonicity",
            summary="Share of steps on which showing more relevant pixels does not lower the score.",
            paper=Paper(
                title="One Explanation Does Not Fit All: A Toolkit and Taxonomy of AI Explainability Techniques",
                year=2019,
                url="https://arxiv.org/abs/1909.03012",
            ),
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="mean_k [f(x_{k+1}) >= f(x_k)], k = 1..L-1; x_k shows the k/n least relevant pixels",
            variant="Arya et al. 2019, signed order; the share of steps, where summary=all is their yes or no.",
            cost=_SHARED,
            limits="Sees no sizes: noise around a flat score weighs as much as a cliff.",
            tags=("faithfulness", "positive-evidence", "scale-invariant"),
            axes=("share of the image shown", "score"),
        ),
        MetricSpec(
            name="average_drop",
            target="xaihub_metrics_curves.confidence:AverageDrop",
            summary="Share of the class's probability that is lost when the image is multiplied by the map.",
            paper=_GRAD_CAM_PLUS_PLUS,
            higher_is_better=False,
            bounds=(0.0, 1.0),
            formula="max(0, p(x) - p(m * x)) / p(x); m = (map - min) / (max - min)",
            variant="A fraction, not percent; the product is taken in the model's units.",
            cost="1 forward pass, shared with increase_in_confidence",
            limits="A map that is 1 nearly everywhere scores best; read it beside complexity or sparseness.",
            tags=("faithfulness", "scale-invariant"),
        ),
        MetricSpec(
            name="increase_in_confidence",
            target="xaihub_metrics_curves.confidence:IncreaseInConfidence",
            summary="Whether the image multiplied by the map is more certain than the image.",
            paper=_GRAD_CAM_PLUS_PLUS,
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="1 if p(m * x) > p(x) else 0; m = (map - min) / (max - min)",
            variant="0 or 1 an image; the mean over images is the published figure.",
            cost="1 forward pass, shared with average_drop",
            limits="One bit an image: it takes hundreds of images to tell two methods apart.",
            tags=("faithfulness", "scale-invariant"),
        ),
        MetricSpec(
            name="road",
            target="xaihub_metrics_curves.road:ROAD",
            summary="Fall of the score when pixels are imputed from their neighbours, best against worst.",
            paper=Paper(
                title="A Consistent and Efficient Evaluation Strategy for Attribution Methods",
                year=2022,
                url="https://arxiv.org/abs/2202.00449",
            ),
            higher_is_better=True,
            bounds=(-1.0, 1.0),
            formula="mean over shares of [p(x without the worst) - p(x without the best)] / 2",
            variant="Noisy linear imputation; order=morf or lerf takes one side; the score, not accuracy.",
            cost="2 forward passes and 2 sparse solves a share (one side: 1 and 1); 9 shares by default",
            limits="A smooth fill still shows the outline of what was cut out.",
            tags=("faithfulness", "scale-invariant", "order-of-pixels"),
            axes=("percent of the pixels imputed", "fall of the score"),
        ),
    ]
