"""Metrics of minimal sufficient pixels: how many they are, what confidence they lose, where they are recognised."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import MetricSpec, Paper

_AD = Paper(
    title="Activation-Deactivation: A General Framework for Robust Post-hoc Explainable AI",
    year=2025,
    url="https://arxiv.org/abs/2510.01038",
)
_REX = Paper(title="Explanations for Occluded Images", year=2021, url="https://arxiv.org/abs/2103.03622")
_SETS = (
    "1 forward pass for a returned set, else 16 and about 8 a confidence, shared with the other metrics of this plugin"
)
_VARIANT = "The explanation's own set where it returned one, else the smallest prefix of its ranking."
_ROBUST = "Large sets are recognised anywhere: read it with sufficient_area, or transplant_curve instead."


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    """Register area, drop of confidence, and transplants at the set's own size and at given sizes."""
    return [
        MetricSpec(
            name="sufficient_area",
            target="xaihub_metrics_sufficiency.area:SufficientArea",
            summary="Share of the image that the explanation needs to keep the answer.",
            paper=_REX,
            higher_is_better=False,
            bounds=(0.0, 1.0),
            formula="|E| / |x|; E as returned, or the first k pixels with argmax f(x_E) = c and f_c(x_E) >= d f_c(x)",
            variant=_VARIANT,
            cost=_SETS,
            limits="Depends on how the others are hidden; a set that keeps the class may keep little confidence.",
            tags=("sufficiency",),
        ),
        MetricSpec(
            name="sufficient_drop",
            target="xaihub_metrics_sufficiency.area:SufficientDrop",
            summary="Confidence that is lost when the model sees the explanation's pixels alone.",
            paper=_AD,
            higher_is_better=False,
            bounds=(-1.0, 1.0),
            formula="f_c(x) - f_c(x_E); x_E hides all but the explanation's set E",
            variant=f"{_VARIANT} The paper's exact formula is unknown to us.",
            cost=_SETS,
            limits="For a prefix it follows from the confidence that is asked for; it tells returned sets apart.",
            tags=("sufficiency",),
        ),
        MetricSpec(
            name="transplant_colours",
            target="xaihub_metrics_sufficiency.transplant:TransplantColours",
            summary="Share of solid colours on which the explanation's pixels keep the answer.",
            paper=_AD,
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="mean over d, b of [argmax f(E x + (1 - E) b) = c]; b a colour, E the set at confidence d",
            variant=f"{_VARIANT} Five confidences; 16 uniform colours; plain forward passes.",
            cost=f"{_SETS}; count forward passes for each confidence",
            limits=_ROBUST,
            tags=("sufficiency", "robustness"),
            axes=("confidence that the set of pixels keeps", "share of backgrounds with the same answer"),
        ),
        MetricSpec(
            name="transplant_photos",
            target="xaihub_metrics_sufficiency.transplant:TransplantPhotos",
            summary="Share of photos of other classes on which the explanation's pixels keep the answer.",
            paper=_AD,
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="mean over d, b of [argmax f(E x + (1 - E) b) = c]; b another photo, E the set at confidence d",
            variant=f"{_VARIANT} Five confidences; photos of the run of other predicted classes; plain forward passes.",
            cost=f"{_SETS}; count forward passes for each confidence",
            limits=f"{_ROBUST} A background has an object of its own, which may rightly win.",
            tags=("sufficiency", "robustness"),
            axes=("confidence that the set of pixels keeps", "share of backgrounds with the same answer"),
        ),
        MetricSpec(
            name="transplant_curve",
            target="xaihub_metrics_sufficiency.transplant:TransplantCurve",
            summary="Share of backgrounds on which equally many best pixels of every map keep the answer.",
            paper=_AD,
            higher_is_better=True,
            bounds=(0.0, 1.0),
            formula="mean over s, b of [argmax f(E_s x + (1 - E_s) b) = c]; E_s the first s of the image's pixels",
            variant="Sizes from 5 to 50 %, the same for every map; 16 colours, or photos; plain forward passes.",
            cost="sizes times count forward passes",
            limits="Scattered pixels are recognised less often than compact ones of equal worth.",
            tags=("sufficiency", "robustness"),
            axes=("share of the image transplanted", "share of backgrounds with the same answer"),
        ),
    ]
