"""Methods with a modified backward pass through activations, computed by captum.

Both are valid only for networks whose activations captum can hook, and both check that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import captum.attr
import torch
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from xaihub import Attribution, Explainer, ExplainerRefused, Model, ResolvedTarget
from xaihub.masking import BaselineName
from xaihub_captum.scores import Scores, baselines, classes, completeness, hooked

# Activations in an autograd graph, by name; ReLU itself is counted.
_ACTIVATION_STEP = re.compile(
    "Celu|Clamp|Elu|Gelu|Glu|Hardshrink|Hardsigmoid|Hardswish|Hardtanh|LeakyRelu|LogSigmoid|Mish|Prelu|Rrelu"
    "|ScaledDotProduct|Sigmoid|Silu|Softmax|Softplus|Softshrink|Tanh|Threshold"
)


class GuidedBackprop(Explainer):
    """The gradient with negative parts removed at every ReLU (Springenberg et al. 2014, arXiv 1412.6806, Sec. 3.4)."""

    parallel = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the modified gradient, (B, C, H, W).

        Raises:
            ExplainerRefused: An activation of the network is not an `nn.ReLU` module.
        """
        refuse_unless_relu(model, inputs[:1], target[:1])
        with hooked(model):
            values: Tensor = captum.attr.GuidedBackprop(Scores(model, target)).attribute(
                inputs.requires_grad_(), additional_forward_args=classes(target)
            )
        return values


class DeepLift(Explainer):
    """Difference from a baseline by the rescale rule (Shrikumar et al. 2017, arXiv 1704.02685, Sec. 3.5)."""

    completeness = True

    baseline: BaselineName = "black"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (B, C, H, W) values that sum to the score minus the baseline's score.

        Raises:
            ExplainerRefused: captum cannot hook the network, or the values miss the score by more than 10 %.
        """
        scores = Scores(model, target, bounded=False)
        start = baselines(self.baseline, model, inputs)
        # One image at a time: captum's rule for softmax mixes the rows of a batch.
        rows = [slice(row, row + 1) for row in range(len(inputs))]
        with hooked(model), repaired(model):
            values = torch.cat([self._one(scores, inputs[row], start[row], target[row]) for row in rows])
        with torch.no_grad():
            difference = torch.cat(
                [scores(inputs[r], *classes(target[r])) - scores(start[r], *classes(target[r])) for r in rows]
            )
            gap, relative, warnings = completeness(
                values, difference, tolerance=0.01, remedy="interpret the map with care"
            )
        unruled = _activations(model.module, known=tuple(SUPPORTED_NON_LINEAR))
        if not float(relative.max()) <= 0.1:
            raise ExplainerRefused(
                f"deeplift is not valid for {model.name!r}: its values miss the change in score from the baseline"
                f" by {float(relative.max()):.0%}, and captum has no rule for {unruled or 'some operation of it'}",
                hint="use integrated_gradients",
            )
        return Attribution(values=values, completeness_gap=gap, warnings=warnings)

    def _one(self, scores: Scores, image: Tensor, start: Tensor, target: ResolvedTarget) -> Tensor:
        try:
            values: Tensor = captum.attr.DeepLift(scores).attribute(
                image.detach().requires_grad_(), start, additional_forward_args=classes(target)
            )
        except (RuntimeError, AssertionError, AttributeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ExplainerRefused(
                f"deeplift is not valid for {scores.model.name!r}: {_reason(error)}", hint="use integrated_gradients"
            ) from error
        return values.detach()


def refuse_unless_relu(model: Model, inputs: Tensor, target: ResolvedTarget) -> None:
    """Check that the network's only activations are `nn.ReLU` modules, by its modules and by its autograd graph.

    Raises:
        ExplainerRefused: There are others; the message names them.
    """
    found = _activations(model.module, known=(nn.ReLU,))
    obstacle = f"has {found}" if found else _functional_activations(model, inputs, target)
    if obstacle:
        raise ExplainerRefused(
            f"guided_backprop needs a network with no activations but nn.ReLU modules, and {model.name!r} {obstacle}",
            hint="use saliency",
        )


def _functional_activations(model: Model, inputs: Tensor, target: ResolvedTarget) -> str:
    """Describe activations that the network computes outside of modules, or that it has none; else return ""."""
    calls: list[nn.Module] = []
    relus = [module for module in model.module.modules() if type(module) is nn.ReLU]
    handles = [relu.register_forward_hook(lambda module, _inputs, _output: calls.append(module)) for relu in relus]
    try:
        score = target.score(model(inputs.detach().requires_grad_()))
    finally:
        for handle in handles:
            handle.remove()
    steps = _graph(score)
    unseen = sorted({name for name in steps if _ACTIVATION_STEP.match(name)})
    if steps["Relu"] > len(calls):
        unseen.append("Relu")
    if any("NotImplemented" in name for name in steps):
        return "has operations without a gradient"
    if unseen:
        return f"computes {', '.join(unseen)} outside of modules"
    return "" if calls else "has none"


@contextmanager
def repaired(model: Model) -> Iterator[None]:
    """Correct captum's DeepLift, which loses part of the score at max pooling.

    A layer whose input is the output of another hooked layer gets a copy of it: hooks on one tensor run in the order of
    the forward pass, so the earlier layer would see the gradient before the later layer's rule. The rule for max
    pooling keeps only one of several windows that share their largest pixel, so it is replaced.
    """
    layers = [module for module in model.module.modules() if type(module) in SUPPORTED_NON_LINEAR]
    handles = [layer.register_forward_pre_hook(lambda _layer, inputs: (inputs[0].clone(),)) for layer in layers]
    original = SUPPORTED_NON_LINEAR[nn.MaxPool2d]
    SUPPORTED_NON_LINEAR[nn.MaxPool2d] = _max_pool
    try:
        yield
    finally:
        SUPPORTED_NON_LINEAR[nn.MaxPool2d] = original
        for handle in handles:
            handle.remove()


def _max_pool(
    layer: nn.MaxPool2d, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float = 1e-10
) -> Tensor:
    """Attribute each output's change to the largest pixel in the image, or in the baseline if that is larger.

    All tensors hold one row for the image and one for the baseline: `inputs` (2, C, H, W), `outputs` (2, C, h, w).
    """
    image, start = inputs.chunk(2)
    high, low = outputs.chunk(2)
    top = torch.maximum(high, low)
    slope = grad_output[:1]  # one multiplier for both rows

    def route(at: Tensor, change: Tensor) -> Tensor:
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            pooled = max_pool2d(at, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
            return torch.autograd.grad(pooled, at, change)[0]

    routed = route(image, slope * (top - low)) + route(start, slope * (high - top))
    delta = image - start
    return torch.where(delta.abs() < eps, grad_input[:1], routed / delta).repeat(2, 1, 1, 1)


def _activations(network: nn.Module, *, known: tuple[type[nn.Module], ...]) -> str:
    """Name and count the activation modules of types other than `known`; empty if there are none."""
    kinds = [type(module) for module in network.modules()]
    found = Counter(
        kind.__name__
        for kind in kinds
        if kind not in known and (kind.__module__ == "torch.nn.modules.activation" or ".activations" in kind.__module__)
    )
    return ", ".join(f"{name} ({count})" for name, count in found.most_common())


def _graph(output: Tensor) -> Counter[str]:
    """Count the operations that computed `output`, by name."""
    todo = [output.grad_fn]
    seen = set()
    while todo:
        step = todo.pop()
        if step is not None and step not in seen:
            seen.add(step)
            todo += [before for before, _ in step.next_functions]
    return Counter(step.name().partition("Backward")[0] for step in seen)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if "used more than once" in text:
        return "a module is used more than once, which captum's rules do not support"
    if "NoneType" in text:
        return "its class scores cannot be differentiated down to the input"
    return f"captum reports {text[:160]!r}"
