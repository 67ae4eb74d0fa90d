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

PenaltyName = Literal["none", "fidelity", "1d", "stability", "l1", "l2"]
Penalty = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


# Stated, in the authors' code.
SIGMA = 0.5  # standard deviation of the training neighbourhood
BATCH, PENALTY_BATCH = 128, 16  # rows per step of the task, and of the penalty, which has a stream of its own
MIN_EPOCHS, MAX_EPOCHS = 50, 2000
PATIENCE = 50  # epochs without a better validation loss before training stops


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network, in evaluation mode."""

    network: nn.Module  # maps (n, d) to (n, k)
    gamma: float  # the penalty's weight
    epochs: int  # epochs of training
    rows: int  # rows that went through the network, over all steps


def fit(
    split: Split, *, depth: int, width: int, penalty: PenaltyName, c: float, seed: int, max_epochs: int = MAX_EPOCHS
) -> Trained:
    """Train as the authors do: Adam at 1e-3, early stopping on validation loss plus penalty, the best state kept.

    `c` is the penalty as a fraction of the loss at the start; the seed fixes initial weights, batches and neighbours.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _make_mlp(split.train[0].shape[1], 1, depth=depth, width=width)
    cost = F.binary_cross_entropy_with_logits if split.binary else F.mse_loss
    penalise = _penalty(penalty)
    inputs_held_out, targets_held_out = split.validation

    def validate(gamma: float) -> tuple[float, float]:
        with torch.no_grad():
            loss = float(cost(network(inputs_held_out), targets_held_out))
            if penalty == "none":
                return loss, 0.0
            count = len(inputs_held_out)
            some = torch.randperm(count, generator=generator)[: max(1, count // 10)]
            return loss, gamma * float(penalise(network, inputs_held_out[some], generator))

    gamma = 0.0 if penalty == "none" else calibrated(c, *validate(1.0))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    inputs, targets = split.train
    batch = min(BATCH, len(inputs))
    tasks = _stream(len(inputs), batch, generator)
    points = _stream(len(inputs), min(PENALTY_BATCH, len(inputs)), generator)
    best, best_epoch, epoch, rows = float("inf"), 0, 0, 0
    state = copy.deepcopy(network.state_dict())

    def count_rows(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal rows
        rows += len(output) if torch.is_grad_enabled() else 0

    handle = network.register_forward_hook(count_rows)
    while epoch < max_epochs and (epoch < MIN_EPOCHS or epoch - best_epoch < PATIENCE):
        epoch += 1
        for _ in range(len(inputs) // batch):
            chosen = next(tasks)
            loss = cost(network(inputs[chosen]), targets[chosen])
            if gamma > 0:
                loss = loss + gamma * penalise(network, inputs[next(points)], generator)
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


def _penalty(name: PenaltyName) -> Penalty:
    if name in ("l1", "l2"):
        power = int(name[1])
        return lambda network, _points, _generator: _weight_decay(network, power)
    kind = {"1d": penalise_line, "stability": penalise_stability}.get(name, penalise_fidelity)
    return lambda network, points, generator: kind(network, points, generator=generator, sigma=SIGMA)


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
