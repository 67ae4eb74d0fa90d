"""Methods that change how a backward pass goes through activations, computed by captum.

Both hold only for networks whose activations captum can hook, so both check that first or afterwards.
"""

from __future__ import annotations

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

# Steps of the autograd graph that are activations; relu itself is counted.
_ACTIVATION_STEPS = (
    "Celu",
    "Clamp",
    "Elu",
    "Gelu",
    "Glu",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyRelu",
    "LogSigmoid",
    "Mish",
    "Prelu",
    "Rrelu",
    "ScaledDotProduct",
    "Sigmoid",
    "Silu",
    "Softmax",
    "Softplus",
    "Softshrink",
    "Tanh",
    "Threshold",
)


class GuidedBackprop(Explainer):
    """The gradient with negative parts cut at every ReLU (Springenberg et al. 2014, arXiv 1412.6806, Sec. 3.4)."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        """Return the altered gradient, (B, C, H, W).

        Raises:
            ExplainerRefused: An activation of the network is not an `nn.ReLU` module.
        """
        refuse_unless_relu(model, inputs[:1], target[:1])
        with hooked(model):
            values: Tensor = captum.attr.GuidedBackprop(Scores(model)).attribute(
                inputs.requires_grad_(), additional_forward_args=classes(target)
            )
        return values


class DeepLift(Explainer):
    """Differences to a baseline by the rescale rule (Shrikumar et al. 2017, arXiv 1704.02685, Sec. 3.5)."""

    completeness = True

    baseline: BaselineName = "black"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (B, C, H, W) values that sum to the score minus the baseline's.

        Raises:
            ExplainerRefused: captum cannot hook the network, or the values miss the score by more than 10 %.
        """
        scores = Scores(model, bounded=False)
        start = baselines(self.baseline, model, inputs)
        # One image at a time: captum's rule for softmax mixes the rows of a batch.
        rows = [slice(row, row + 1) for row in range(len(inputs))]
        with hooked(model), repaired(model):
            values = torch.cat([self._one(scores, inputs[row], start[row], target[row]) for row in rows])
        with torch.no_grad():
            difference = torch.cat(
                [scores(inputs[r], *classes(target[r])) - scores(start[r], *classes(target[r])) for r in rows]
            )
            gap, share, warnings = completeness(values, difference, tolerance=0.01, remedy="read it with care")
        if not float(share.max()) <= 0.1:
            raise ExplainerRefused(
                f"deeplift does not hold on {model.name!r}: its values miss the change of the score from the baseline"
                f" by {float(share.max()):.0%}, and captum has no rule for {self._without_rule(model)}",
                hint="use integrated_gradients",
            )
        return Attribution(values=values, completeness_gap=gap, warnings=warnings)

    @staticmethod
    def _without_rule(model: Model) -> str:
        found = _activations(model.module, known=tuple(SUPPORTED_NON_LINEAR))
        return found or "some operation of this network"

    def _one(self, scores: Scores, image: Tensor, start: Tensor, target: ResolvedTarget) -> Tensor:
        try:
            values: Tensor = captum.attr.DeepLift(scores).attribute(
                image.detach().requires_grad_(), start, additional_forward_args=classes(target)
            )
        except (RuntimeError, AssertionError, AttributeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ExplainerRefused(
                f"deeplift does not apply to {scores.model.name!r}: {_reason(error)}", hint="use integrated_gradients"
            ) from error
        return values.detach()


def refuse_unless_relu(model: Model, inputs: Tensor, target: ResolvedTarget) -> None:
    """Check that the network's only activations are `nn.ReLU` modules, by its modules and by its autograd graph.

    Raises:
        ExplainerRefused: They are not; the sentence names those that were found.
    """
    needs = f"guided_backprop needs a network whose only activations are nn.ReLU modules, and {model.name!r}"
    modules = list(model.module.modules())
    found = _activations(model.module, known=(nn.ReLU,))
    if found:
        raise ExplainerRefused(f"{needs} has {found}", hint="use saliency")
    calls: list[nn.Module] = []
    relus = [module for module in modules if type(module) is nn.ReLU]
    handles = [relu.register_forward_hook(lambda module, _inputs, _output: calls.append(module)) for relu in relus]
    try:
        score = target.score(model(inputs.detach().requires_grad_()))
    finally:
        for handle in handles:
            handle.remove()
    steps = _graph(score)
    unseen = sorted({name for name in steps if name.startswith(_ACTIVATION_STEPS)})
    if unseen:
        raise ExplainerRefused(f"{needs} computes {', '.join(unseen)} outside of modules", hint="use saliency")
    functional = steps["Relu"] - len(calls)
    if functional > 0:
        raise ExplainerRefused(f"{needs} computes {functional} relus outside of modules", hint="use saliency")
    if not calls:
        raise ExplainerRefused(f"{needs} has none", hint="use saliency")


@contextmanager
def repaired(model: Model) -> Iterator[None]:
    """Mend what makes captum's DeepLift lose part of the score at max pooling.

    A layer whose input is directly another hooked layer's output gets a copy of it: hooks on one tensor run in the
    order of the forward pass, so the earlier layer would see the gradient before the later layer's rule. And the rule
    for max pooling keeps one of several windows that share their largest pixel, so it is replaced.
    """
    layers = [module for module in model.module.modules() if type(module) in SUPPORTED_NON_LINEAR]
    handles = [layer.register_forward_pre_hook(lambda _layer, inputs: (inputs[0].clone(),)) for layer in layers]
    captums_own = SUPPORTED_NON_LINEAR[nn.MaxPool2d]
    SUPPORTED_NON_LINEAR[nn.MaxPool2d] = _max_pool
    try:
        yield
    finally:
        SUPPORTED_NON_LINEAR[nn.MaxPool2d] = captums_own
        for handle in handles:
            handle.remove()


def _max_pool(
    layer: nn.MaxPool2d, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float = 1e-10
) -> Tensor:
    """Give each output's change to the pixel that is largest in the image, or in the baseline if that is larger.

    All tensors hold the image's row and the baseline's; `inputs` (2, C, H, W), `outputs` (2, C, h, w).
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

    moved = route(image, slope * (top - low)) + route(start, slope * (high - top))
    delta = image - start
    return torch.where(delta.abs() < eps, grad_input[:1], moved / delta).repeat(2, 1, 1, 1)


def _activations(network: nn.Module, *, known: tuple[type[nn.Module], ...]) -> str:
    """Name and count the activation modules of other types than the `known`; empty if there are none."""
    kinds = [type(module) for module in network.modules()]
    found = Counter(
        kind.__name__
        for kind in kinds
        if kind not in known and (kind.__module__ == "torch.nn.modules.activation" or ".activations" in kind.__module__)
    )
    return ", ".join(f"{name} ({count})" for name, count in found.most_common())


def _graph(output: Tensor) -> Counter[str]:
    """Count the operations that `output` was computed by, by name."""
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
        return "a module is used more than once, and captum's rules need one module a use"
    return f"captum says {text[:160]!r}"
