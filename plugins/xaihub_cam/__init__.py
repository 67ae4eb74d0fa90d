"""Class activation maps: the cells of one layer, weighted by what they mean for the class."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec, Paper

_COARSE = "As coarse as the layer's grid; refuses models without a layer whose cells map back to the image."


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the CAM family."""
    return [
        ExplainerSpec(
            name="gradcam",
            target="xaihub_cam.through_torchcam:GradCAM",
            summary="Weight each channel of a layer by its mean gradient.",
            paper=Paper(
                title="Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
                year=2017,
                url="https://arxiv.org/abs/1610.02391",
            ),
            needs=("activations", "gradients"),
            cost="1 forward pass and 1 backward pass, the latter only down to the layer",
            limits=_COARSE,
            variant="Eq. 1 and 2 on the class score before softmax; after ReLU, not rescaled; computed by torchcam.",
            tags=("cam", "gradient"),
        ),
        ExplainerSpec(
            name="gradcam_pp",
            target="xaihub_cam.plus_plus:GradCAMPlusPlus",
            summary="Weight each channel by its positive gradients, each with its own coefficient.",
            paper=Paper(
                title="Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
                year=2018,
                url="https://arxiv.org/abs/1710.11063",
            ),
            needs=("activations", "gradients"),
            cost="1 forward pass and 1 backward pass, the latter only down to the layer",
            limits=f"{_COARSE} Refuses where negative activations make a denominator of Eq. 19 zero or negative.",
            variant="Eq. 19 with numerator and denominator divided by the squared gradient, so no epsilon is needed;"
            " the common factor exp(score) is left out.",
            tags=("cam", "gradient"),
        ),
        ExplainerSpec(
            name="smoothgradcam_pp",
            target="xaihub_cam.plus_plus:SmoothGradCAMPlusPlus",
            summary="Grad-CAM++ with gradients averaged over noisy copies of the image.",
            paper=Paper(
                title="Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep Convolutional"
                " Neural Network Models",
                year=2019,
                url="https://arxiv.org/abs/1908.01224",
            ),
            needs=("activations", "gradients"),
            cost="samples + 1 forward pass and samples backward passes",
            limits=f"{_COARSE} Refuses like gradcam_pp.",
            variant="The numerator of each coefficient is the mean squared gradient, as Grad-CAM++ derives it (the"
            " paper prints the mean gradient); activations are those of the image without noise.",
            tags=("cam", "gradient"),
        ),
        ExplainerSpec(
            name="scorecam",
            target="xaihub_cam.forward_only:ScoreCAM",
            summary="Weight each channel by the class's score when the image is seen through that channel.",
            paper=Paper(
                title="Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
                year=2020,
                url="https://arxiv.org/abs/1910.01279",
            ),
            needs=("activations",),
            cost="1 + channels forward passes",
            limits=f"{_COARSE} The softmax over channels often lets a few of them decide.",
            variant="Algorithm 1: masks scaled to [0, 1] after bilinear upsampling, score before softmax, zero (the"
            " data's mean) where the mask is zero.",
            tags=("cam", "perturbation"),
        ),
        ExplainerSpec(
            name="layercam",
            target="xaihub_cam.through_torchcam:LayerCAM",
            summary="Weight each cell of each channel by its own positive gradient.",
            paper=Paper(
                title="LayerCAM: Exploring Hierarchical Class Activation Maps for Localization",
                year=2021,
                url="https://doi.org/10.1109/TIP.2021.3089943",
            ),
            needs=("activations", "gradients"),
            cost="1 forward pass and 1 backward pass, the latter only down to the layer",
            limits=f"{_COARSE} Works on early, finer layers, too: name one with 'layer'.",
            variant="One layer, without the paper's tanh scaling for the fusion of several; computed by torchcam.",
            tags=("cam", "gradient"),
        ),
        ExplainerSpec(
            name="xgradcam",
            target="xaihub_cam.through_torchcam:XGradCAM",
            summary="Grad-CAM with gradients averaged in proportion to the activations.",
            paper=Paper(
                title="Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs",
                year=2020,
                url="https://arxiv.org/abs/2008.02312",
            ),
            needs=("activations", "gradients"),
            cost="1 forward pass and 1 backward pass, the latter only down to the layer",
            limits=f"{_COARSE} Divides by each channel's sum, so it is meant for activations after a ReLU.",
            variant="Eq. 7 with 1e-8 added to each channel's sum; computed by torchcam.",
            tags=("cam", "gradient"),
        ),
        ExplainerSpec(
            name="eigencam",
            target="xaihub_cam.forward_only:EigenCAM",
            summary="Show the first principal component of a layer, whatever the class.",
            paper=Paper(
                title="Eigen-CAM: Class Activation Map using Principal Components",
                year=2020,
                url="https://arxiv.org/abs/2008.00299",
            ),
            needs=("activations",),
            cost="1 forward pass",
            limits=f"{_COARSE} The same for every class; a singular vector has no sign of its own.",
            variant="Not centred, as in the paper (centre=true is what pytorch-grad-cam computes); the sign is chosen"
            " so that the cell of largest magnitude is positive.",
            tags=("cam", "class-agnostic"),
        ),
        ExplainerSpec(
            name="hirescam",
            target="xaihub_cam.hires:HiResCAM",
            summary="Sum gradient times activation over the channels of each cell.",
            paper=Paper(
                title="Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks",
                year=2020,
                url="https://arxiv.org/abs/2011.08891",
            ),
            needs=("activations", "gradients"),
            cost="1 forward pass and 1 backward pass, the latter only down to the layer",
            limits=f"{_COARSE} Zero, and refused, where each cell is normalised next (most transformers).",
            variant="Eq. 5 of the paper followed by a ReLU, as the other maps of this family.",
            tags=("cam", "gradient"),
        ),
    ]
