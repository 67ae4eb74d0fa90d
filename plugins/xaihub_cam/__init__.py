"""Class activation maps: the cells of one layer, weighted by their relevance to the class."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec, Need, Paper

# name, year, arXiv number, title
_PAPERS = """
gradcam 2017 1610.02391 Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization
gradcam_pp 2018 1710.11063 Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks
smoothgradcam_pp 2019 1908.01224 Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep\
 Convolutional Neural Network Models
scorecam 2020 1910.01279 Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks
layercam 2021 10.1109/TIP.2021.3089943 LayerCAM: Exploring Hierarchical Class Activation Maps for Localization
xgradcam 2020 2008.02312 Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs
eigencam 2020 2008.00299 Eigen-CAM: Class Activation Map using Principal Components
hirescam 2020 2011.08891 Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks
"""
_ONCE = "1 forward pass and 1 backward pass, the latter only down to the layer"
_COARSE = "As coarse as the layer's grid. Refuses models without a layer whose cells map back to the image."


def _paper(name: str) -> Paper:
    _, year, number, title = next(
        row for line in _PAPERS.strip().splitlines() if (row := line.split(maxsplit=3))[0] == name
    )
    site = "doi.org" if "/" in number else "arxiv.org/abs"
    return Paper(title=title, year=int(year), url=f"https://{site}/{number}")


def _spec(
    name: str,
    target: str,
    summary: str,
    variant: str,
    *,
    cost: str = _ONCE,
    limits: str = "",
    needs: tuple[Need, ...] = ("activations", "gradients"),
    tag: str = "gradient",
) -> ExplainerSpec:
    return ExplainerSpec(
        name=name,
        target=f"xaihub_cam.{target}",
        summary=summary,
        paper=_paper(name),
        needs=needs,
        cost=cost,
        limits=f"{_COARSE} {limits}".rstrip(),
        variant=variant,
        tags=("cam", tag),
    )


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the CAM family."""
    return [
        _spec(
            "gradcam",
            "through_torchcam:GradCAM",
            "Weight each channel of a layer by its mean gradient.",
            "Stated: Eq. 1 and 2 on the class score before softmax. Our choice: not rescaled. Computed by torchcam.",
        ),
        _spec(
            "gradcam_pp",
            "gradient:GradCAMPlusPlus",
            "Weight each channel by its positive gradients, with one coefficient per cell.",
            "Stated: Eq. 19. Derived: numerator and denominator are divided by the squared gradient, so no epsilon is"
            " needed. Our choice: the common factor exp(score) is omitted.",
            limits="Refuses if negative activations make a denominator of Eq. 19 zero or negative.",
        ),
        _spec(
            "smoothgradcam_pp",
            "gradient:SmoothGradCAMPlusPlus",
            "Grad-CAM++ with gradients averaged over noisy copies of the image.",
            "Derived: the numerator of each coefficient is the mean squared gradient, as in Grad-CAM++ (the paper"
            " prints the mean gradient). Our choice: activations are those of the image without noise.",
            cost="samples + 1 forward passes and samples backward passes",
            limits="Refuses like gradcam_pp.",
        ),
        _spec(
            "scorecam",
            "forward_only:ScoreCAM",
            "Weight each channel by the class score of the image masked with that channel.",
            "Stated: Algorithm 1, with masks scaled to [0, 1] after bilinear upsampling and the score before softmax;"
            " zero (the data's mean) where the mask is zero.",
            cost="1 + channels forward passes",
            limits="The softmax over channels often lets a few channels dominate.",
            needs=("activations",),
            tag="perturbation",
        ),
        _spec(
            "layercam",
            "through_torchcam:LayerCAM",
            "Weight each cell of each channel by its own positive gradient.",
            "Stated: the map of one layer. Our choice: without the tanh scaling that the paper uses to fuse several"
            " layers. Computed by torchcam.",
            limits="Also works on early, finer layers; name one with 'layer'.",
        ),
        _spec(
            "xgradcam",
            "through_torchcam:XGradCAM",
            "Grad-CAM with gradients averaged in proportion to the activations.",
            "Stated: Eq. 7. Our choice: 1e-8 is added to each channel's sum. Computed by torchcam.",
            limits="Divides by each channel's sum, so it is meant for activations after a ReLU.",
        ),
        _spec(
            "eigencam",
            "forward_only:EigenCAM",
            "First principal component of a layer's activations (class-independent).",
            "Stated: not centred (centre=true is what pytorch-grad-cam computes). Our choice: the sign that makes the"
            " cell of largest magnitude positive.",
            cost="1 forward pass",
            limits="The same for every class; a singular vector has no sign of its own.",
            needs=("activations",),
            tag="class-agnostic",
        ),
        _spec(
            "hirescam",
            "gradient:HiResCAM",
            "Sum gradient times activation over the channels of each cell.",
            "Stated: Eq. 5. Our choice: followed by a ReLU, as in the other maps of this family.",
            limits="Refuses layers whose cells are normalised next (most transformers), because the map is zero there.",
        ),
    ]
