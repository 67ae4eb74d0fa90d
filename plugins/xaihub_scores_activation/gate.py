"""The layer of Covaci et al. 2025 (arXiv 2511.13809): one trained score per feature, a softmax, a product.

s are the scores, w(s) their softmax, x the input and y = w(s) * x the output (stated in two machine-written reviews).
Every parameter below but `num_features` and `dim` is our choice.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xaihub import ParameterError

FLAT = 1.5  # our choice: a largest weight below this multiple of the mean ranks hardly anything


class ScoresActivation(nn.Module):
    """Multiply each feature by its weight: y = gain * softmax(s / temperature) * x, with one s for all samples.

    Attributes:
        scores: (d,) the scores s, initially zero, so that all features start equal.

    Args:
        num_features: d.
        dim: The axis of the features; the other axes broadcast.
        gain: Factor on the output; "d" is the number of features, which makes the layer the identity at the start. 1 is
            the literal equation.
        temperature: Divides the scores before the softmax.

    Raises:
        ParameterError: An argument is out of range.
    """

    def __init__(
        self, num_features: int, dim: int = -1, gain: float | Literal["d"] = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ParameterError(f"num_features cannot be {num_features}", hint="use at least 1")
        if gain != "d" and not (isinstance(gain, (int, float)) and gain > 0):
            raise ParameterError(f"gain cannot be {gain!r}", hint="use 'd' or a positive number")
        if not temperature > 0:
            raise ParameterError(f"temperature cannot be {temperature}", hint="use a positive number")
        self.num_features = num_features
        self.dim = dim
        self.gain = gain
        self.temperature = temperature
        self.scores = nn.Parameter(torch.zeros(num_features))

    @property
    def factor(self) -> float:
        """The gain as a number."""
        return float(self.num_features if self.gain == "d" else self.gain)

    def _softmax(self) -> Tensor:
        # Half precision, which autocast would use, has too few digits for a softmax over thousands of features.
        with torch.autocast(self.scores.device.type, enabled=False):
            wide = self.scores if self.scores.dtype is torch.float64 else self.scores.float()
            return (wide / self.temperature).softmax(0)

    def factors(self) -> Tensor:
        """Return gain * w(s): the (d,) factors of the features, with their graph."""
        return self.factor * self._softmax()

    def weights(self) -> Tensor:
        """Return w(s), the global ranking: (d,) positive, summing to one, without a graph."""
        with torch.no_grad():
            return self._softmax()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the gated inputs, with unchanged shape and type.

        Raises:
            ParameterError: The axis `dim` does not have `num_features` entries.
        """
        if not -inputs.ndim <= self.dim < inputs.ndim or inputs.shape[self.dim] != self.num_features:
            raise ParameterError(
                f"ScoresActivation gates {self.num_features} features along axis {self.dim}, but the input has the"
                f" shape {tuple(inputs.shape)}",
                hint="set num_features and dim to match the input",
            )
        shape = [1] * inputs.ndim
        shape[self.dim] = self.num_features
        return inputs * self.factors().to(inputs.dtype).reshape(shape)

    def largest(self) -> float:
        """Return the largest weight as a multiple of the mean weight: 1 if all are equal, at most d."""
        return float(self.weights().max()) * self.num_features

    def ranking(self) -> Tensor:
        """Return (d,) feature indices, most important first; ties go to the lower index."""
        return torch.argsort(self.weights(), descending=True, stable=True)

    def top_k(self, k: int) -> Tensor:
        """Return the indices of the k most important features; it plays no part in training.

        Raises:
            ParameterError: k is out of range.
        """
        if not 1 <= k <= self.num_features:
            raise ParameterError(f"k cannot be {k}", hint=f"use 1 to {self.num_features}")
        return self.ranking()[:k]

    def extra_repr(self) -> str:
        """The arguments, as torch shows a layer."""
        return f"{self.num_features}, dim={self.dim}, gain={self.gain!r}, temperature={self.temperature}"


def warnings_of_flatness(largest: float) -> list[str]:
    """Return a warning if the largest weight, as a multiple of the mean, is too small for a ranking."""
    if largest >= FLAT:
        return []
    return [
        f"the ranking is nearly flat: the largest weight is {largest:.2f} times the mean; train for more epochs or with"
        " a higher score_lr"
    ]


def gates(network: nn.Module) -> list[tuple[str, ScoresActivation]]:
    """Return every gate of a network with its dotted name."""
    return [(name, part) for name, part in network.named_modules() if isinstance(part, ScoresActivation)]


def param_groups(
    network: nn.Module, lr: float, score_lr_mult: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return two groups for a torch optimizer: the rest of the network, and the scores without weight decay.

    Weight decay would pull the scores towards uniform weights.
    """
    scores = [gate.scores for _, gate in gates(network)]
    own = {id(score) for score in scores}
    rest = [weight for weight in network.parameters() if id(weight) not in own]
    return [
        {"params": rest, "lr": lr, "weight_decay": weight_decay},
        {"params": scores, "lr": lr * score_lr_mult, "weight_decay": 0.0},
    ]


@torch.no_grad()
def fold_(gate: ScoresActivation, following: nn.Module) -> None:
    """Multiply the gate into the weights of the layer that follows it, in place: W becomes W diag(gain * w).

    Without the gate, the layer then returns what it returned with it (derived).

    Raises:
        ParameterError: The layer is neither linear nor a convolution, or its inputs are not the gate's features.
    """
    if not isinstance(following, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise ParameterError(
            f"a gate cannot be folded into {type(following).__name__}", hint="follow it by a linear layer"
        )
    weight = following.weight  # (out, in / groups, ...)
    if weight.shape[1] != gate.num_features:
        raise ParameterError(
            f"a gate on {gate.num_features} features cannot be folded into a layer of {weight.shape[1]} inputs"
        )
    weight.mul_(gate.factors().to(weight).reshape(1, -1, *[1] * (weight.ndim - 2)))


@torch.no_grad()
def warn_of_batch_norm(network: nn.Module, example: Tensor) -> None:
    """Run a network on an example, and warn once per batch norm that reads a gate's output.

    Such a batch norm divides the gate out again, so the scores get almost no gradient (derived).
    """
    outputs: list[tuple[str, Tensor]] = []

    def leave(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.append((name, output))

    def enter(name: str) -> Any:
        def warn(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            for gate in [gate for gate, output in outputs if inputs and inputs[0] is output]:
                warnings.warn(
                    f"the batch norm {name!r} directly follows the gate {gate!r} and divides it out again, so its"
                    " scores will hardly learn",
                    UserWarning,
                    stacklevel=2,
                )

        return warn

    # timm's own batch norms derive from torch's.
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    handles = [gate.register_forward_hook(leave(name)) for name, gate in gates(network)]
    handles += [
        part.register_forward_pre_hook(enter(name)) for name, part in network.named_modules() if isinstance(part, kinds)
    ]
    training = network.training
    try:
        network.eval()(example)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
