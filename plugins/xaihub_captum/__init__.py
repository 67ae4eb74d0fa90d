"""captum's gradient and perturbation methods."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec, Need, Paper

# name, year, arXiv number, title
_PAPERS = """
saliency 2013 1312.6034 Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps
occlusion 2013 1311.2901 Visualizing and Understanding Convolutional Networks
guided_backprop 2014 1412.6806 Striving for Simplicity: The All Convolutional Net
input_x_gradient 2016 1605.01713 Not Just a Black Box: Learning Important Features Through Propagating Activation\
 Differences
lime 2016 1602.04938 'Why Should I Trust You?': Explaining the Predictions of Any Classifier
integrated_gradients 2017 1703.01365 Axiomatic Attribution for Deep Networks
deeplift 2017 1704.02685 Learning Important Features Through Propagating Activation Differences
shap 2017 1705.07874 A Unified Approach to Interpreting Model Predictions
smoothgrad 2017 1706.03825 SmoothGrad: removing noise by adding noise
"""
_ONCE = "1 forward pass and 1 backward pass"


def _paper(name: str) -> Paper:
    _, year, number, title = next(
        row for line in _PAPERS.strip().splitlines() if (row := line.split(maxsplit=3))[0] == name
    )
    return Paper(title=title, year=int(year), url=f"https://arxiv.org/abs/{number}")


def _spec(
    name: str,
    target: str,
    summary: str,
    tags: tuple[str, ...],
    *,
    variant: str,
    limits: str,
    cost: str = _ONCE,
    paper: str = "",
) -> ExplainerSpec:
    needs: tuple[Need, ...] = ("gradients",) if "gradient" in tags else ("black-box",)
    return ExplainerSpec(
        name=name,
        target=f"xaihub_captum.{target}",
        summary=summary,
        paper=_paper(paper or name),
        needs=needs,
        cost=cost,
        limits=limits,
        variant=variant,
        tags=tags,
    )


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register the methods that captum computes."""
    return [
        _spec(
            "saliency",
            "gradients:Saliency",
            "Gradient of the score with respect to each pixel.",
            ("gradient",),
            variant="Stated: the largest absolute value over the channels; absolute=false gives the signed gradient.",
            limits="Shows the effect of a tiny change, not what the score is made of; noisy on deep networks.",
        ),
        _spec(
            "input_x_gradient",
            "gradients:InputXGradient",
            "Gradient times input, signed.",
            ("gradient",),
            variant="Our choice: on the normalised input, one value per channel.",
            limits="Depends on which value is zero: pixels of the data's mean colour get no attribution.",
        ),
        _spec(
            "integrated_gradients",
            "gradients:IntegratedGradients",
            "Gradients integrated along the straight path from a baseline to the image.",
            ("gradient", "completeness"),
            cost="steps forward and backward passes, and 2 forward passes for the completeness gap",
            variant="Our choice: Gauss-Legendre quadrature by default, and a warning if the completeness gap exceeds"
            " 5 % of the change in score.",
            limits="Depends on the baseline: pixels of the baseline's colour get no attribution.",
        ),
        _spec(
            "gradient_shap",
            "gradients:GradientShap",
            "Gradients at random points between the image and several baselines (expected gradients).",
            ("gradient", "completeness", "stochastic"),
            paper="shap",
            cost="samples forward and backward passes, and 1 + baselines forward passes for the completeness gap",
            variant="Stated: expected gradients (Erion et al. 2019, arXiv 1906.10670), one random baseline and"
            " one random point of its path per sample. Our choice: named baselines instead of a data set.",
            limits="Shapley values only if the model is linear and features are independent; complete on average only.",
        ),
        _spec(
            "smoothgrad",
            "gradients:SmoothGrad",
            "Mean gradient over noisy copies of the image.",
            ("gradient", "stochastic"),
            cost="samples forward and backward passes",
            variant="Our choice: signed gradients are averaged, then the largest absolute value over the channels is"
            " taken.",
            limits="The noise level is a free choice that changes the map.",
        ),
        _spec(
            "guided_backprop",
            "rules:GuidedBackprop",
            "Gradient with negative parts removed at every ReLU.",
            ("gradient",),
            cost="1 forward pass and 1 backward pass, and 1 forward pass for the check",
            variant="Stated: the guided backward pass through ReLU. Our choice: one value per channel.",
            limits="Refuses networks with activations other than nn.ReLU modules; shows edges more than the class.",
        ),
        _spec(
            "deeplift",
            "rules:DeepLift",
            "Difference from a baseline, propagated back layer by layer.",
            ("gradient", "completeness"),
            cost="2 forward passes and 2 backward passes, and 2 forward passes for the completeness gap",
            variant="Stated: rescale rule. Derived: captum's rule for max pooling is corrected to lose no score.",
            limits="Refuses if its values miss the change in score by more than 10 % (GELU, SiLU, ReLU6, attention,"
            " layer norm) or if a module is used twice; warns above 1 %.",
        ),
        _spec(
            "occlusion",
            "perturbation:Occlusion",
            "Drop in the class score when a sliding window is masked.",
            ("perturbation",),
            cost="1 forward pass, and 1 for each of about (side / stride)^2 windows",
            variant="Stated: a grey square slides over the image, and the class score is measured at each place. Our"
            " choice: all channels at once; a pixel's value is the mean drop over the windows that cover it.",
            limits="Misses redundant evidence: masking one of two copies changes nothing. The window's size limits what"
            " can be seen.",
        ),
        _spec(
            "feature_ablation",
            "perturbation:FeatureAblation",
            "Drop in the class score when one cell, patch or superpixel is masked.",
            ("perturbation",),
            paper="occlusion",
            cost="1 forward pass, and 1 per feature",
            variant="Our choice: cells, patches or superpixels instead of the paper's window; each pixel carries its"
            " feature's value.",
            limits="Misses redundant evidence: masking one of two copies changes nothing.",
        ),
        _spec(
            "kernel_shap",
            "perturbation:KernelShap",
            "Shapley values of superpixels, estimated by weighted regression.",
            ("perturbation", "completeness", "stochastic"),
            paper="shap",
            cost="at most samples forward passes; a coalition drawn again costs nothing",
            variant="Derived: coalitions drawn in proportion to the Shapley kernel. Our choice: each pixel carries its"
            " feature's value; values sum over features, not pixels, to the score minus the masked image's score.",
            limits="An estimate: coalitions are random; at equal passes shapley_values had smaller errors in all our"
            " measurements. Masked images are unlike the training images.",
        ),
        _spec(
            "lime",
            "perturbation:Lime",
            "Linear model of the score over superpixels, fitted near the image.",
            ("perturbation", "stochastic"),
            cost="at most samples forward passes; a coalition drawn again costs nothing",
            variant="Stated: a linear model of visible features, weighted by an exponential kernel of the distance to"
            " the image. Our choice: cosine distance, and ridge regression without feature selection; each pixel"
            " carries its feature's coefficient.",
            limits="Depends on the superpixels and on the kernel width; the linear fit may be poor.",
        ),
    ]
