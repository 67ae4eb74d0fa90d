"""The layer of Covaci et al. 2025 (arXiv 2511.13809): one trained score a feature, a softmax over them, a product.

Notation follows the equations as secondary sources give them: s are the scores, w(s) their softmax, x the input and
y = w(s) * x the output. What the paper was not seen to fix is a parameter here; the card says which those are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xaihub import ParameterError

__all__ = ["History", "ScoresActivation", "batch_norms_after", "fold_", "gates", "param_groups", "warn_of_batch_norm"]


class ScoresActivation(nn.Module):
    """Multiply each feature by its weight: y = gain * softmax(s / temperature) * x, one s for all samples.

    Attributes:
        scores: (d,) the scores s; zeros at first, so that all features start equal.

    Args:
        num_features: d.
        dim: The axis of the features; the others broadcast.
        gain: A factor on the output; "d" stands for the number of features, which makes the layer the identity at
            first. 1 is the literal equation.
        temperature: What the scores are divided by.
        init: "zeros" is the only one: any constant is equivalent, and a random start leaves its noise in the ranking.

    Raises:
        ParameterError: An argument is out of range.
    """

    def __init__(
        self,
        num_features: int,
        dim: int = -1,
        gain: float | Literal["d"] = 1.0,
        temperature: float = 1.0,
        init: Literal["zeros"] = "zeros",
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ParameterError(f"num_features cannot be {num_features}", hint="it is at least 1")
        if gain != "d" and not (isinstance(gain, (int, float)) and gain > 0):
            raise ParameterError(f"gain cannot be {gain!r}", hint="it is 'd' or a positive number")
        if not temperature > 0:
            raise ParameterError(f"temperature cannot be {temperature}", hint="it is positive")
        if init != "zeros":
            raise ParameterError(f"init cannot be {init!r}", hint="it is 'zeros'")
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
        # Half precision has too few digits for a softmax over thousands of features, and autocast must not bring it.
        with torch.autocast(self.scores.device.type, enabled=False):
            wide = self.scores if self.scores.dtype is torch.float64 else self.scores.float()
            return (wide / self.temperature).softmax(0)

    def factors(self) -> Tensor:
        """Return gain * w(s): (d,) what the features are multiplied by, with its graph."""
        return self.factor * self._softmax()

    def weights(self) -> Tensor:
        """Return w(s): (d,) positive, summing to one, without a graph. This is the global ranking."""
        with torch.no_grad():
            return self._softmax()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the gated inputs, of the same shape and type.

        Raises:
            ParameterError: The axis `dim` does not have `num_features` entries.
        """
        if not -inputs.ndim <= self.dim < inputs.ndim or inputs.shape[self.dim] != self.num_features:
            raise ParameterError(
                f"ScoresActivation gates {self.num_features} features along axis {self.dim}, but the input has the"
                f" shape {tuple(inputs.shape)}",
                hint="set num_features and dim to the input's",
            )
        shape = [1] * inputs.ndim
        shape[self.dim] = self.num_features
        return inputs * self.factors().to(inputs.dtype).reshape(shape)

    def ranking(self) -> Tensor:
        """Return (d,) feature indices, the most important first; of equals the lower index is first."""
        return torch.argsort(self.weights(), descending=True, stable=True)

    def top_k(self, k: int) -> Tensor:
        """Return the indices of the k most important features: a reading, no part of training.

        Raises:
            ParameterError: There are fewer features.
        """
        if not 1 <= k <= self.num_features:
            raise ParameterError(f"k cannot be {k}", hint=f"1 to {self.num_features}")
        return self.ranking()[:k]

    def extra_repr(self) -> str:
        """The arguments, as torch shows a layer."""
        return f"{self.num_features}, dim={self.dim}, gain={self.gain!r}, temperature={self.temperature}"


def gates(network: nn.Module) -> list[tuple[str, ScoresActivation]]:
    """Return every gate of a network with its dotted name."""
    return [(name, part) for name, part in network.named_modules() if isinstance(part, ScoresActivation)]


def param_groups(
    network: nn.Module, lr: float, score_lr_mult: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return two groups for a torch optimiser: the scores, never decayed, and the rest.

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

    The layer then gives, without the gate, what it gave with it.

    Raises:
        ParameterError: The layer is neither linear nor a convolution, or its inputs are not the gate's features.
    """
    if not isinstance(following, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise ParameterError(
            f"a gate cannot be folded into {type(following).__name__}", hint="it must be followed by a linear layer"
        )
    weight = following.weight  # (out, in / groups, ...)
    if weight.shape[1] != gate.num_features:
        raise ParameterError(
            f"a gate on {gate.num_features} features cannot be folded into a layer of {weight.shape[1]} inputs"
        )
    weight.mul_(gate.factors().to(weight).reshape(1, -1, *[1] * (weight.ndim - 2)))


class History:
    """The weights after each epoch: they are a ranking at any moment of training."""

    def __init__(self, gate: ScoresActivation) -> None:
        self.gate = gate
        self.rows: list[Tensor] = []

    def record(self) -> Tensor:
        """Keep the weights as they are now, and return them."""
        self.rows.append(self.gate.weights().cpu().clone())
        return self.rows[-1]

    def table(self) -> Tensor:
        """Return (epochs, d)."""
        return torch.stack(self.rows) if self.rows else torch.empty(0, self.gate.num_features)


@torch.no_grad()
def batch_norms_after(network: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Return (gate, batch norm) names where a batch norm takes a gate's very output, found by one forward pass.

    Such a batch norm divides the gate out again, so that the scores get next to no gradient.
    """
    outputs: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no other tensor gets the identity of an output
    found: list[tuple[str, str]] = []

    def leave(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            kept.append(output)
            outputs[id(output)] = name

        return hook

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and id(inputs[0]) in outputs:
                found.append((outputs[id(inputs[0])], name))

        return hook

    handles = [gate.register_forward_hook(leave(name)) for name, gate in gates(network)]
    handles += [part.register_forward_pre_hook(enter(name)) for name, part in _batch_norms(network)]
    training = network.training
    try:
        network.eval()(example)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return found


def warn_of_batch_norm(network: nn.Module, example: Tensor) -> None:
    """Warn once for each batch norm that directly follows a gate."""
    for gate, norm in batch_norms_after(network, example):
        warnings.warn(
            f"the batch norm {norm!r} directly follows the gate {gate!r} and divides it out again: its scores will"
            " hardly learn",
            UserWarning,
            stacklevel=2,
        )


def _batch_norms(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    # timm's own batch norms derive from torch's.
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    return ((name, part) for name, part in network.named_modules() if isinstance(part, kinds))
