"""The paper's networks for tables and their training: a calibrated penalty, early stopping, the best state kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub_expo.penalties import calibrated
from xaihub_expo.reproduction.datasets import Split
from xaihub_expo.reproduction.penalties import penalise_fidelity, penalise_line, penalise_stability

__all__ = ["PenaltyName", "Settings", "Trained", "fit"]

PenaltyName = Literal["none", "fidelity", "1d", "stability", "l1", "l2"]
Penalty = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The paper's settings.

    Attributes:
        depth: Number of hidden layers.
        width: Units per hidden layer.
        penalty: The term added to the loss.
        c: The penalty as a fraction of the loss at the start.
        sigma: Standard deviation of the training neighbourhood.
        batch: Rows per step.
        penalty_batch: Penalised rows per step, from a stream of their own.
        patience: Epochs without a better validation loss before training stops.
        min_epochs: Minimum number of epochs.
        max_epochs: Maximum number of epochs.
    """

    depth: int
    width: int
    penalty: PenaltyName = "none"
    c: float = 0.0
    sigma: float = 0.5
    batch: int = 128
    penalty_batch: int = 16
    patience: int = 50
    min_epochs: int = 50
    max_epochs: int = 2000


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network, in evaluation mode.

    Attributes:
        network: Maps (n, d) to (n, k).
        gamma: The penalty's weight.
        epochs: Epochs of training.
        rows: Rows that went through the network, over all steps.
    """

    network: nn.Module
    gamma: float
    epochs: int
    rows: int


def fit(split: Split, settings: Settings, *, seed: int) -> Trained:
    """Train as the authors do: Adam at 1e-3, early stopping on validation loss plus penalty, the best state kept."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _make_mlp(split.train[0].shape[1], 1, depth=settings.depth, width=settings.width)
    cost = F.binary_cross_entropy_with_logits if split.binary else F.mse_loss
    penalty = _penalty(settings)
    inputs_held_out, targets_held_out = split.validation

    def validate(gamma: float) -> tuple[float, float]:
        with torch.no_grad():
            loss = float(cost(network(inputs_held_out), targets_held_out))
            if settings.penalty == "none":
                return loss, 0.0
            count = len(inputs_held_out)
            some = torch.randperm(count, generator=generator)[: max(1, count // 10)]
            return loss, gamma * float(penalty(network, inputs_held_out[some], generator))

    gamma = 0.0 if settings.penalty == "none" else calibrated(settings.c, *validate(1.0))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    inputs, targets = split.train
    batch = min(settings.batch, len(inputs))
    tasks = _stream(len(inputs), batch, generator)
    points = _stream(len(inputs), min(settings.penalty_batch, len(inputs)), generator)
    best, best_epoch, epoch, rows = float("inf"), 0, 0, 0
    state = copy.deepcopy(network.state_dict())

    def count_rows(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal rows
        rows += len(output) if torch.is_grad_enabled() else 0

    handle = network.register_forward_hook(count_rows)
    while epoch < settings.max_epochs and (epoch < settings.min_epochs or epoch - best_epoch < settings.patience):
        epoch += 1
        for _ in range(len(inputs) // batch):
            chosen = next(tasks)
            loss = cost(network(inputs[chosen]), targets[chosen])
            if gamma > 0:
                loss = loss + gamma * penalty(network, inputs[next(points)], generator)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        held_out = sum(validate(gamma))
        if held_out < best:
            best, best_epoch = held_out, epoch
            state = copy.deepcopy(network.state_dict())
    handle.remove()
    network.load_state_dict(state)
    return Trained(network=network.eval(), gamma=gamma, epochs=epoch, rows=rows)


def _make_mlp(inputs: int, outputs: int, *, depth: int, width: int) -> nn.Sequential:
    """Return a leaky-ReLU network with Xavier-uniform weights and zero biases, from torch's global generator."""
    sizes = [inputs, *[width] * depth]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
    network = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network


def _penalty(settings: Settings) -> Penalty:
    if settings.penalty in ("l1", "l2"):
        power = int(settings.penalty[1])
        return lambda network, _points, _generator: _weight_decay(network, power)
    kind = {"1d": penalise_line, "stability": penalise_stability}.get(settings.penalty, penalise_fidelity)
    return lambda network, points, generator: kind(network, points, generator=generator, sigma=settings.sigma)


def _weight_decay(network: nn.Module, power: int) -> Tensor:
    """Return the sum of |w|^power over weights without biases: the paper's baselines."""
    weights = [weight.abs().pow(power).sum() for name, weight in network.named_parameters() if "weight" in name]
    return torch.stack(weights).sum()


def _stream(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of indices endlessly; every epoch is shuffled again, and an incomplete last batch is dropped."""
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
