"""ExpO: training penalties that make local linear explanations of a network fit better, and metrics for such fits."""

from collections.abc import Iterator

from xaihub.hookspecs import hookimpl
from xaihub.specs import Judged, MetricSpec, ObjectiveSpec, Paper, ReproductionSpec

_PAPER = Paper(
    title="Regularizing Black-box Models for Improved Interpretability",
    year=2020,
    url="https://arxiv.org/abs/1902.06787",
)
_PROMISE = (
    "Improves the fit of local linear explanations, not their faithfulness; use scale-free metrics, because small"
    " logits improve the others for free."
)

_LOCAL = tuple(
    f"{name}{form}" for name in ("neighbourhood_fidelity", "surrogate_stability") for form in ("", "_relative")
)
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
    fits = "1 + penalty_batch * samples / batch / every passes"
    return [
        _objective(
            "expo-fidelity",
            "Fidelity",
            "Cross-entropy plus a penalty on how far the logits are from affine in which patches are visible.",
            cost=fits,
            variant="least-squares fits on random neighbours (stated, for tables); it never penalises slope (derived);"
            " cells of a grid as features, masks of all sizes as neighbours and c = 1",
        ),
        _objective(
            "expo-1d",
            "LineFidelity",
            "Cross-entropy plus a penalty on how far the logits are from affine in the opacity of one random patch.",
            cost=fits,
            limits="Ignores interactions between patches. ",
            variant="least-squares fits along one random feature (stated, for tables); it sees only the diagonal of the"
            " Hessian (derived); opacities of grid cells as features and all settings on images",
        ),
        _objective(
            "expo-stability",
            "Stability",
            "Cross-entropy plus the squared change of the logits under small noise or faded patches.",
            cost="1 + penalty_batch / batch / every passes, twice the penalty without freeze_norm or with dropout",
            limits="Flattens the function, so it is for classifiers only. ",
            variant="noise on pixels (stated, for MNIST); it penalises slope first (derived); faded cells and"
            " evaluation mode for both sides",
            tags=("robustness",),
        ),
    ]


def _objective(
    name: str, target: str, summary: str, *, cost: str, variant: str, limits: str = "", tags: tuple[str, ...] = ()
) -> ObjectiveSpec:
    return ObjectiveSpec(
        name=name,
        target=f"xaihub_expo.objectives:{target}",
        summary=summary,
        paper=_PAPER,
        cost=cost,
        limits=limits + _PROMISE,
        variant=f"our reconstruction: a weight calibrated once as c * loss / penalty (stated); {variant}, and when the"
        " weight is calibrated (our choice).",
        tags=("local-linear", *tags),
        judged=_JUDGED,
    )


@hookimpl
def xaihub_register_reproductions() -> list[ReproductionSpec]:
    """Register the paper's experiment on tables."""
    return [
        ReproductionSpec(
            name="expo",
            target="xaihub_expo.reproduction.command:reproduce_expo",
            summary="Test loss, fidelity and stability of networks on tables, with and without ExpO.",
            paper=_PAPER,
        )
    ]


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register the metrics of local linear models and of maps, with their scale-free forms."""
    local = "only for explainers that give a local linear model (lime, kernel_shap)"
    constant = "a map that ignores model and image is perfectly stable"
    masks, copies = "masks forward passes, shared by all explainers", "draws further explanations"
    return [
        *_metrics(
            "point_fidelity",
            "PointFidelity",
            "Squared error of the local linear model at the image itself",
            "(g(1) - f(1))^2",
            variant="The squared error (stated, for tables); masked regions as features (our choice)",
            cost="none",
            limits=local,
        ),
        *_metrics(
            "neighbourhood_fidelity",
            "NeighbourhoodFidelity",
            "Mean squared error of the local linear model under fresh random masks",
            "mean over masks z of (g(z) - f(z))^2",
            relative=("the variance of the output", "Var f(z)"),
            variant="The mean squared error (stated, for tables); masked regions as features (our choice)",
            cost=masks,
            limits=local,
        ),
        *_metrics(
            "surrogate_stability",
            "SurrogateStability",
            "Squared change of the local linear model's coefficients under small image noise",
            "mean over noisy x' of ||e(x') - e(x)||_2^2",
            relative=("their squared norm", "||beta(x)||_2^2"),
            variant="The squared change, with x' explained (stated, for tables; the released code explains x again);"
            " images (our choice)",
            cost=copies,
            limits=f"{local}, on a grid; {constant}",
        ),
        *_metrics(
            "saliency_stability",
            "SaliencyStability",
            "Mean squared per-pixel change of the map under small image noise",
            "mean over noisy x' and pixels of (map(x') - map(x))^2",
            relative=("the map's mean square", "mean of map(x)^2"),
            variant="The squared change (stated, for saliency on MNIST); maps of any explainer (our choice)",
            cost=copies,
            limits=constant,
            tag="robustness",
        ),
    ]


def _metrics(
    name: str,
    target: str,
    summary: str,
    formula: str,
    *,
    relative: tuple[str, str] | None = None,
    variant: str,
    cost: str,
    limits: str,
    tag: str = "local-linear",
) -> Iterator[MetricSpec]:
    """Yield a metric and, with a denominator in words and as a formula, its scale-free form."""
    forms = [("", "", "", "", variant, "; smaller outputs score better for free, so read the relative form as well")]
    if relative is not None:
        words, symbols = relative
        mark = f"Division by {words} (our choice). {variant}"
        forms.append(("_relative", "Relative", f", divided by {words}", f" / {symbols}", mark, ""))
    for suffix, prefix, over, divided, mark, scale in forms:
        yield MetricSpec(
            name=name + suffix,
            target=f"xaihub_expo.metrics:{prefix}{target}",
            summary=f"{summary}{over}.",
            paper=_PAPER,
            higher_is_better=False,
            bounds=(0.0, float("inf")),
            formula=formula + divided,
            variant=f"{mark}. All explainers and models get the same masks, noise and random numbers (our choice).",
            cost=cost,
            limits=f"{limits[0].upper()}{limits[1:]}{scale}.",
            tags=(tag,),
        )
