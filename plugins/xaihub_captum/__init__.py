"""captum's gradient and perturbation methods."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec, Paper


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the methods that captum computes."""
    return [*_gradients(), *_rules(), *_perturbation()]


def _gradients() -> list[ExplainerSpec]:
    return [
        ExplainerSpec(
            name="saliency",
            target="xaihub_captum.gradients:Saliency",
            summary="The gradient of the score with respect to each pixel.",
            paper=Paper(
                title="Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps",
                year=2013,
                url="https://arxiv.org/abs/1312.6034",
            ),
            needs=("gradients",),
            cost="1 forward pass and 1 backward pass",
            limits="What a tiny change would do, not what the score is made of; noisy on deep networks.",
            variant="The largest absolute value over the channels; absolute=false gives the signed gradient.",
            tags=("gradient",),
        ),
        ExplainerSpec(
            name="input_x_gradient",
            target="xaihub_captum.gradients:InputXGradient",
            summary="The gradient times the input, signed.",
            paper=Paper(
                title="Not Just a Black Box: Learning Important Features Through Propagating Activation Differences",
                year=2016,
                url="https://arxiv.org/abs/1605.01713",
            ),
            needs=("gradients",),
            cost="1 forward pass and 1 backward pass",
            limits="Depends on what value is called zero: pixels of the data's mean colour get no attribution.",
            variant="On the normalised input; one value a channel.",
            tags=("gradient",),
        ),
        ExplainerSpec(
            name="integrated_gradients",
            target="xaihub_captum.gradients:IntegratedGradients",
            summary="Gradients summed along the straight path from a baseline to the image.",
            paper=Paper(
                title="Axiomatic Attribution for Deep Networks", year=2017, url="https://arxiv.org/abs/1703.01365"
            ),
            needs=("gradients",),
            cost="steps forward and backward passes, and 2 forward passes for the completeness gap",
            limits="Depends on the baseline: pixels of the baseline's colour get no attribution.",
            variant="Gauss-Legendre quadrature by default; warns if the completeness gap is above 5 %.",
            tags=("gradient", "completeness"),
        ),
        ExplainerSpec(
            name="gradient_shap",
            target="xaihub_captum.gradients:GradientShap",
            summary="Gradients at random points between the image and several baselines.",
            paper=Paper(
                title="A Unified Approach to Interpreting Model Predictions",
                year=2017,
                url="https://arxiv.org/abs/1705.07874",
            ),
            needs=("gradients",),
            cost="samples forward and backward passes, and 1 + baselines forward passes for the completeness gap",
            limits="Shapley values only if the model is linear and features are independent; complete on average only.",
            variant="Expected gradients: one random baseline and one random point of its path a sample.",
            tags=("gradient", "completeness", "stochastic"),
        ),
        ExplainerSpec(
            name="smoothgrad",
            target="xaihub_captum.gradients:SmoothGrad",
            summary="The mean gradient over noisy copies of the image.",
            paper=Paper(
                title="SmoothGrad: removing noise by adding noise", year=2017, url="https://arxiv.org/abs/1706.03825"
            ),
            needs=("gradients",),
            cost="samples forward and backward passes",
            limits="The noise level is a free choice that changes the map.",
            variant="Signed gradients are averaged, then the largest absolute value over the channels is taken.",
            tags=("gradient", "stochastic"),
        ),
    ]


def _rules() -> list[ExplainerSpec]:
    return [
        ExplainerSpec(
            name="guided_backprop",
            target="xaihub_captum.rules:GuidedBackprop",
            summary="The gradient with its negative parts cut off at every ReLU.",
            paper=Paper(
                title="Striving for Simplicity: The All Convolutional Net",
                year=2014,
                url="https://arxiv.org/abs/1412.6806",
            ),
            needs=("gradients",),
            cost="1 forward pass and 1 backward pass, and 1 forward pass for the check",
            limits="Refuses networks with any activation but nn.ReLU modules; shows edges more than the class.",
            variant="One value a channel.",
            tags=("gradient",),
        ),
        ExplainerSpec(
            name="deeplift",
            target="xaihub_captum.rules:DeepLift",
            summary="The difference from a baseline, passed back layer by layer.",
            paper=Paper(
                title="Learning Important Features Through Propagating Activation Differences",
                year=2017,
                url="https://arxiv.org/abs/1704.02685",
            ),
            needs=("gradients",),
            cost="2 forward passes and 2 backward passes, and 2 forward passes for the completeness gap",
            limits="Refuses where its values miss the score's change by more than 10 % (GELU, SiLU, ReLU6, attention,"
            " layer norm), or where a module is used twice; warns from 1 % on.",
            variant="Rescale rule.",
            tags=("gradient", "completeness"),
        ),
    ]


def _perturbation() -> list[ExplainerSpec]:
    return [
        ExplainerSpec(
            name="occlusion",
            target="xaihub_captum.perturbation:Occlusion",
            summary="The score's loss under a sliding window.",
            paper=Paper(
                title="Visualizing and Understanding Convolutional Networks",
                year=2013,
                url="https://arxiv.org/abs/1311.2901",
            ),
            cost="1 forward pass, and 1 for each of about (side / stride)^2 windows",
            limits="Blind to evidence that is there twice; the window's size sets what can be seen.",
            variant="All channels at once; a pixel's value is the mean over the windows that cover it.",
            tags=("perturbation",),
        ),
        ExplainerSpec(
            name="feature_ablation",
            target="xaihub_captum.perturbation:FeatureAblation",
            summary="The score's loss when one cell, patch or superpixel is hidden.",
            paper=Paper(
                title="Visualizing and Understanding Convolutional Networks",
                year=2013,
                url="https://arxiv.org/abs/1311.2901",
            ),
            cost="1 forward pass, and 1 for each feature",
            limits="Blind to evidence that is there twice.",
            variant="Every pixel carries its feature's value.",
            tags=("perturbation",),
        ),
        ExplainerSpec(
            name="kernel_shap",
            target="xaihub_captum.perturbation:KernelShap",
            summary="Shapley values of superpixels, estimated by a weighted regression.",
            paper=Paper(
                title="A Unified Approach to Interpreting Model Predictions",
                year=2017,
                url="https://arxiv.org/abs/1705.07874",
            ),
            cost="at most samples + 2 forward passes; a coalition that is drawn again costs nothing",
            limits="An estimate: coalitions are drawn at random; a hidden superpixel is an image the model never saw.",
            variant="Coalitions drawn by the Shapley kernel; every pixel carries its feature's value, and the values"
            " sum over features, not pixels, to the score minus the score of the hidden image.",
            tags=("perturbation", "completeness", "stochastic"),
        ),
        ExplainerSpec(
            name="lime",
            target="xaihub_captum.perturbation:Lime",
            summary="A linear model of the score over superpixels, fitted near the image.",
            paper=Paper(
                title="'Why Should I Trust You?': Explaining the Predictions of Any Classifier",
                year=2016,
                url="https://arxiv.org/abs/1602.04938",
            ),
            cost="at most samples forward passes; a coalition that is drawn again costs nothing",
            limits="Depends on the superpixels and on the kernel's width; a linear fit may be poor.",
            variant="Cosine kernel and ridge regression without feature selection; every pixel carries its feature's"
            " coefficient.",
            tags=("perturbation", "stochastic"),
        ),
    ]
