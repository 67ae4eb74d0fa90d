"""Metrics of sufficient sets of pixels: size, drop in confidence, and whether they are recognised elsewhere."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper

_AD = Paper(
    "Activation-Deactivation: A General Framework for Robust Post-hoc Explainable AI",
    2025,
    "https://arxiv.org/abs/2510.01038",
)
_REX = Paper("Explanations for Occluded Images", 2021, "https://arxiv.org/abs/2103.03622")
_SETS = "1 forward pass for a returned set, else 16 and about 8 per confidence, shared with the plugin's other metrics"
_SET = "The returned set, if any (stated), else the smallest sufficient prefix of the ranking (our choice)."


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register area, drop in confidence, and transplants at the set's own size and at given sizes."""
    return [
        MetricSpec(
            name="sufficient_area",
            target="xaihub_metrics_sufficiency.area:SufficientArea",
            summary="Fraction of the image that the explanation needs to keep the class.",
            paper=_REX,
            higher_is_better=False,
            bounds=(0.0, 1.0),
            formula="|E| / |x|; E as returned, or the first k pixels with argmax f(x_E) = c and f_c(x_E) >= d f_c(x)",
            variant=_SET,
            cost=_SETS,
            limits="Depends on the baseline; a set that keeps the class may keep little confidence.",
            tags=("sufficiency",),
        ),
        MetricSpec(
            name="sufficient_drop",
            target="xaihub_metrics_sufficiency.area:SufficientDrop",
            summary="Drop in confidence when the model sees the explanation's set alone.",
            paper=_AD,
            higher_is_better=False,
            bounds=(-1.0, 1.0),
            formula="f_c(x) - f_c(x_E); in x_E all pixels but those of the set E are replaced",
            variant=f"Our reconstruction: the paper's formula is unknown to us. {_SET}",
            cost=_SETS,
            limits="For a prefix it follows from the required confidence; it distinguishes returned sets.",
            tags=("sufficiency",),
        ),
        _transplant(
            "colours",
            "solid colours",
            "Five confidences; 16 uniform colours; plain forward passes (our choice).",
            "",
        ),
        _transplant(
            "photos",
            "photos of other classes",
            "Five confidences; images of the run with other predicted classes; plain forward passes (our choice).",
            " A background has an object of its own, which may rightly win.",
        ),
        MetricSpec(
            name="transplant_curve",
            target="xaihub_metrics_sufficiency.transplant:TransplantCurve",
            summary="Fraction of backgrounds on which the same number of top pixels of every map keeps the class.",
            paper=_AD,
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="mean over s, b of [argmax f(E_s x + (1 - E_s) b) = c]; E_s the first s of the image's pixels",
            variant="Our choice: sizes from 5 to 50 %, the same for every map; 16 colours, or photos.",
            cost="sizes x count forward passes",
            limits="Scattered pixels are recognised less often than compact pixels of equal relevance.",
            tags=("sufficiency", "robustness"),
            axes=("fraction of the image transplanted", "fraction of backgrounds that keep the class"),
        ),
    ]


def _transplant(family: str, backgrounds: str, settings: str, limits: str) -> MetricSpec:
    return MetricSpec(
        name=f"transplant_{family}",
        target=f"xaihub_metrics_sufficiency.transplant:Transplant{family.capitalize()}",
        summary=f"Fraction of {backgrounds} on which the explanation's pixels keep the class.",
        paper=_AD,
        higher_is_better=True,
        bounds=(0.0, 1.0),
        formula=f"mean over d, b of [argmax f(E x + (1 - E) b) = c]; b from {backgrounds}, E the set at confidence d",
        variant=f"Our reconstruction. {_SET} {settings}",
        cost=f"{_SETS}; count forward passes per confidence",
        limits=f"Large sets are recognised anywhere: read it with sufficient_area, or use transplant_curve.{limits}",
        tags=("sufficiency", "robustness"),
        axes=("confidence that the set keeps", "fraction of backgrounds that keep the class"),
    )
