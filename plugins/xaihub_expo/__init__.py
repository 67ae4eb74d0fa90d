"""ExpO: penalties that make a network easy to explain by local linear models, and measures of such explanations."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import Judged, MetricSpec, ObjectiveSpec, Paper, ReproductionSpec

_PAPER = Paper(
    title="Regularizing Black-box Models for Improved Interpretability",
    year=2020,
    url="https://arxiv.org/abs/1902.06787",
)
_PROMISE = (
    "it makes local linear explanations better, not true; read scale-free measures, as small logits flatter others"
)

_LOCAL = ("neighbourhood_fidelity", "neighbourhood_fidelity_relative", "surrogate_stability",
          "surrogate_stability_relative")  # fmt: skip
_GRID = {"features": "grid:5", "baseline": "mean", "samples": 96}
_JUDGED = (
    Judged(explainer="lime", parameters=_GRID, metrics=_LOCAL),
    Judged(explainer="kernel_shap", parameters=_GRID, metrics=_LOCAL),
    Judged(
        explainer="saliency",
        parameters={"absolute": False},
        metrics=("saliency_stability", "saliency_stability_relative"),
    ),
)


@hookimpl
def xaihub_register_objectives() -> list[ObjectiveSpec]:
    """Register the three penalties."""
    return [
        ObjectiveSpec(
            name="expo-fidelity",
            target="xaihub_expo.objectives:Fidelity",
            summary="Cross-entropy, and how far the logits are from affine in which patches are shown.",
            paper=_PAPER,
            cost="1 + penalty_batch * samples / batch / every passes",
            limits=_PROMISE,
            tags=("local-linear",),
            judged=_JUDGED,
        ),
        ObjectiveSpec(
            name="expo-1d",
            target="xaihub_expo.objectives:LineFidelity",
            summary="Cross-entropy, and how far the logits are from affine in the opacity of one random patch.",
            paper=_PAPER,
            cost="1 + penalty_batch * samples / batch / every passes",
            limits=f"blind to interactions between patches; {_PROMISE}",
            tags=("local-linear",),
            judged=_JUDGED,
        ),
        ObjectiveSpec(
            name="expo-stability",
            target="xaihub_expo.objectives:Stability",
            summary="Cross-entropy, and the squared change of the logits under small noise or faded patches.",
            paper=_PAPER,
            cost="1 + penalty_batch / batch / every passes, and as many more without --freeze-norm or with dropout",
            limits=f"it flattens the function, so it is for classifiers only; {_PROMISE}",
            tags=("local-linear", "robustness"),
            judged=_JUDGED,
        ),
    ]


@hookimpl
def xaihub_register_reproductions() -> list[ReproductionSpec]:
    """Register the paper's experiment on tables."""
    return [
        ReproductionSpec(
            name="expo",
            target="xaihub_expo.reproduction:reproduce_expo",
            summary="Accuracy, fidelity and stability of networks for tables, with and without ExpO.",
            paper=_PAPER,
            extra="tables",
        )
    ]


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the measures of local linear models and of maps, with their scale-free forms."""
    local = "only for explainers that give a local linear model: lime, kernel_shap"
    flatter = "a network with smaller outputs scores better; read the relative form beside it"
    same = "a map that ignores model and image is perfectly stable"
    masks, copies = "masks forward passes, shared by all explainers", "draws further explanations"
    return [
        _metric(
            "point_fidelity",
            "PointFidelity",
            "Squared error of the local linear model at the image itself.",
            "(g(1) - f(1))^2",
            cost="none",
            limits=f"{local}; {flatter}",
        ),
        _metric(
            "neighbourhood_fidelity",
            "NeighbourhoodFidelity",
            "Mean squared error of the local linear model under fresh random masks.",
            "mean over masks z of (g(z) - f(z))^2",
            cost=masks,
            limits=f"{local}; {flatter}",
        ),
        _metric(
            "neighbourhood_fidelity_relative",
            "RelativeNeighbourhoodFidelity",
            "Share of the output's variance under fresh masks that the local linear model misses.",
            "mean over masks z of (g(z) - f(z))^2 / Var f(z)",
            cost=masks,
            limits=local,
        ),
        _metric(
            "surrogate_stability",
            "SurrogateStability",
            "Squared change of the local linear model's coefficients under small noise on the image.",
            "mean over noisy x' of ||e(x') - e(x)||_2^2",
            cost=copies,
            limits=f"{local}, on a grid; {flatter}",
        ),
        _metric(
            "surrogate_stability_relative",
            "RelativeSurrogateStability",
            "The same over the squared norm of the coefficients.",
            "mean over noisy x' of ||e(x') - e(x)||_2^2 / ||beta(x)||_2^2",
            cost=copies,
            limits=f"{local}, on a grid; {same}",
        ),
        _metric(
            "saliency_stability",
            "SaliencyStability",
            "Mean squared change of a map, a pixel, under small noise on the image.",
            "mean over noisy x' and pixels of (map(x') - map(x))^2",
            cost=copies,
            limits=f"{same}; {flatter}",
        ),
        _metric(
            "saliency_stability_relative",
            "RelativeSaliencyStability",
            "The same over the mean square of the map.",
            "mean of (map(x') - map(x))^2 / mean of map(x)^2",
            cost=copies,
            limits=same,
        ),
    ]


def _metric(name: str, target: str, summary: str, formula: str, *, cost: str, limits: str) -> MetricSpec:
    return MetricSpec(
        name=name,
        target=f"xaihub_expo.metrics:{target}",
        summary=summary,
        paper=_PAPER,
        higher_is_better=False,
        bounds=(0.0, float("inf")),
        formula=formula,
        variant="the same masks, noise and random numbers for every explainer and model; x' is explained again",
        cost=cost,
        limits=limits,
        tags=("local-linear",) if "saliency" not in name else ("robustness",),
    )
