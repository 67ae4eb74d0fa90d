"""Methods based on the gradient of the score, computed by captum."""

from __future__ import annotations

from typing import Annotated, Literal

import captum.attr
import torch
from torch import Tensor

from xaihub import Attribution, Explainer, Meta, Model, ParameterError, Passes, ResolvedTarget, current_generator
from xaihub.masking import BaselineName
from xaihub_captum.scores import Scores, baselines, classes, completeness, gradient_rows

# Random rows held at one time. Fixed, so that neither memory nor the random numbers depend on the batch size.
BLOCK = 64

Absolute = Annotated[
    bool, Meta(description="Largest absolute value over the channels; otherwise signed, one value per channel.")
]


class Saliency(Explainer):
    """The gradient of the score (Simonyan, Vedaldi, Zisserman 2013, arXiv 1312.6034, Sec. 3)."""

    parallel = True

    absolute: Absolute = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the gradient: (B, 1, H, W) if absolute, else (B, C, H, W)."""
        gradient: Tensor = captum.attr.Saliency(Scores(model, target)).attribute(
            inputs.requires_grad_(), abs=self.absolute, additional_forward_args=classes(target)
        )
        return gradient.amax(1, keepdim=True) if self.absolute else gradient


class InputXGradient(Explainer):
    """The gradient times the input (Shrikumar et al. 2016, arXiv 1605.01713, Sec. 2.4)."""

    parallel = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the signed product, (B, C, H, W)."""
        product: Tensor = captum.attr.InputXGradient(Scores(model, target)).attribute(
            inputs.requires_grad_(), additional_forward_args=classes(target)
        )
        return product.detach()


class IntegratedGradients(Explainer):
    """Gradients along the straight path from a baseline (Sundararajan, Taly, Yan 2017, arXiv 1703.01365, Eq. 1)."""

    parallel = True
    completeness = True

    steps: Annotated[
        int,
        Meta(ge=2, description="Points on the path; each costs a forward and a backward pass."),
        Passes(each=3, extra=2),
    ] = 50
    rule: Annotated[
        Literal["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"],
        Meta(description="Rule that approximates the integral."),
    ] = "gausslegendre"
    baseline: BaselineName = "black"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (B, C, H, W) values that sum to the score minus the baseline's score."""
        scores, where = Scores(model, target), classes(target)
        start = baselines(self.baseline, model, inputs)
        values: Tensor = captum.attr.IntegratedGradients(scores).attribute(
            inputs,
            start,
            additional_forward_args=where,
            n_steps=self.steps,
            method=self.rule,
            internal_batch_size=max(len(inputs), gradient_rows(model)),
        )
        with torch.no_grad():
            difference = scores(inputs, *where) - scores(start, *where)
            gap, _, warnings = completeness(values, difference, tolerance=0.05, remedy="use more steps")
        return Attribution(values=values, completeness_gap=gap, warnings=warnings)


class GradientShap(Explainer):
    """Expected gradients over noisy inputs and several baselines (Lundberg and Lee 2017; Erion et al. 2019)."""

    stochastic = True  # captum draws from the global generators
    completeness = True

    samples: Annotated[
        int,
        Meta(ge=1, description="Random points; each costs a forward and a backward pass."),
        Passes(each=3, extra=3),
    ] = 50
    noise: Annotated[
        float, Meta(ge=0, description="Standard deviation of the noise, as a fraction of the image's value range.")
    ] = 0.0
    baselines: Annotated[str, Meta(description="Comma-separated baselines; each random point draws one of them.")] = (
        "black,white"
    )

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (1, C, H, W) values that sum to the score minus the baselines' mean score, in expectation."""
        names = [name.strip() for name in self.baselines.split(",")]
        if not all(names):
            raise ParameterError(
                f"baselines cannot be {self.baselines!r}", hint="write comma-separated names: black,white"
            )
        starts = torch.cat([baselines(name, model, inputs) for name in names])
        scores, where = Scores(model, target), classes(target)
        values = torch.zeros_like(inputs)
        # captum holds all samples at once, so they are computed in blocks.
        for done in range(0, self.samples, BLOCK):
            block = min(BLOCK, self.samples - done)
            part = captum.attr.GradientShap(scores).attribute(
                inputs,
                starts,
                n_samples=block,
                stdevs=self.noise * value_range(inputs),
                additional_forward_args=where,
            )
            values += part.detach() * (block / self.samples)
        with torch.no_grad():
            indices = [index.expand(len(starts)) for index in where]
            difference = scores(inputs, *where) - scores(starts, *indices).mean()
            gap, _, warnings = completeness(values, difference, tolerance=0.05, remedy="use more samples")
        return Attribution(values=values, completeness_gap=gap, warnings=warnings)


class SmoothGrad(Explainer):
    """The mean gradient at noisy copies of the input (Smilkov et al. 2017, arXiv 1706.03825, Sec. 2.2)."""

    stochastic = True
    parallel = True

    samples: Annotated[
        int,
        Meta(ge=1, description="Noisy copies (n in the paper); each costs a forward and a backward pass."),
        Passes(each=3),
    ] = 50
    noise: Annotated[
        float, Meta(gt=0, description="Standard deviation of the noise, as a fraction of the image's value range.")
    ] = 0.15
    absolute: Absolute = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the mean gradient: (1, 1, H, W) if absolute, else (1, C, H, W)."""
        saliency, where, generator = captum.attr.Saliency(Scores(model, target)), classes(target), current_generator()
        mean = torch.zeros_like(inputs)
        # captum's NoiseTunnel draws the same numbers, but from the global generator.
        for done in range(0, self.samples, BLOCK):
            shape = (min(BLOCK, self.samples - done), *inputs.shape[1:])
            noise = torch.normal(0.0, torch.full(shape, self.noise * value_range(inputs)), generator=generator)
            noisy = (inputs + noise.to(inputs)).requires_grad_()
            repeated = tuple(index.expand(len(noisy)) for index in where)
            gradients = saliency.attribute(noisy, abs=False, additional_forward_args=repeated)
            mean += gradients.sum(0, keepdim=True) / self.samples
        return mean.abs().amax(1, keepdim=True) if self.absolute else mean


def value_range(inputs: Tensor) -> float:
    """Return the largest minus the smallest value, in the model's units."""
    return float(inputs.max() - inputs.min())
