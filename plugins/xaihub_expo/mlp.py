"""The paper's networks for tables and their training: a calibrated penalty, early stopping, the best state kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub_expo.penalties import penalise_fidelity, penalise_line, penalise_stability
from xaihub_expo.tables import Split

__all__ = ["FLOOR", "PenaltyName", "Settings", "Trained", "calibrated", "fit", "make_mlp"]

PenaltyName = Literal["none", "fidelity", "1d", "stability", "l1", "l2"]
Penalty = Callable[[nn.Module, Tensor, torch.Generator], Tensor]

FLOOR = 1e-12  # a penalty that starts at zero, as of a linear network, must not make an infinite weight


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The paper's settings.

    Attributes:
        depth: Hidden layers.
        width: Their units.
        penalty: What is added to the loss.
        c: Its share of the loss at the start.
        sigma: Standard deviation of the training neighbourhood.
        batch: Rows a step.
        penalty_batch: Rows a step that are penalised, from a stream of their own.
        patience: Epochs without a better validation loss before training stops.
        least_epochs: Epochs that are always done.
        most_epochs: Epochs that are never exceeded.
    """

    depth: int
    width: int
    penalty: PenaltyName = "none"
    c: float = 0.0
    sigma: float = 0.5
    batch: int = 128
    penalty_batch: int = 16
    patience: int = 50
    least_epochs: int = 50
    most_epochs: int = 2000


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network, in evaluation mode.

    Attributes:
        network: Maps (n, d) to (n, k).
        gamma: The penalty's weight.
        epochs: How long training took.
        rows: Rows that went through the network, over all steps.
        validation: The task's loss on the validation part.
    """

    network: nn.Module
    gamma: float
    epochs: int
    rows: int
    validation: float


def make_mlp(inputs: int, outputs: int, *, depth: int, width: int) -> nn.Sequential:
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


def calibrated(c: float, loss: float, penalty: float) -> float:
    """Return the weight that makes a penalty the share c of the loss: c L_0 / R_0."""
    return c * loss / max(penalty, FLOOR)


def fit(split: Split, settings: Settings, *, seed: int) -> Trained:
    """Train as the authors do: Adam at 1e-3, early stopping on validation loss plus penalty, the best state kept."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_mlp(split.train[0].shape[1], 1, depth=settings.depth, width=settings.width)
    cost = F.binary_cross_entropy_with_logits if split.binary else F.mse_loss
    penalty = _penalty(settings)
    held_out, wanted = split.validation
    few = max(1, len(held_out) // 10)

    def validate(gamma: float) -> tuple[float, float]:
        with torch.no_grad():
            loss = float(cost(network(held_out), wanted))
            if settings.penalty == "none":
                return loss, 0.0
            some = torch.randperm(len(held_out), generator=generator)[:few]
            return loss, gamma * float(penalty(network, held_out[some], generator))

    gamma = 0.0
    if settings.penalty != "none":
        start, share = validate(1.0)
        gamma = calibrated(settings.c, start, share)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    inputs, targets = split.train
    batch = min(settings.batch, len(inputs))
    tasks = _stream(len(inputs), batch, generator)
    points = _stream(len(inputs), min(settings.penalty_batch, len(inputs)), generator)
    best, best_epoch, epoch, best_task, rows = float("inf"), 0, 0, float("inf"), 0
    state = copy.deepcopy(network.state_dict())

    def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal rows
        rows += len(output) if torch.is_grad_enabled() else 0

    handle = network.register_forward_hook(count)
    while epoch < settings.most_epochs and (epoch < settings.least_epochs or epoch - best_epoch < settings.patience):
        epoch += 1
        for _ in range(len(inputs) // batch):
            chosen = next(tasks)
            loss = cost(network(inputs[chosen]), targets[chosen])
            if gamma > 0:
                loss = loss + gamma * penalty(network, inputs[next(points)], generator)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        task, share = validate(gamma)
        if task + share < best:
            best, best_epoch, best_task = task + share, epoch, task
            state = copy.deepcopy(network.state_dict())
    handle.remove()
    network.load_state_dict(state)
    return Trained(network=network.eval(), gamma=gamma, epochs=epoch, rows=rows, validation=best_task)


def _penalty(settings: Settings) -> Penalty:
    if settings.penalty in ("l1", "l2"):
        return partial(_decay, power=int(settings.penalty[1]))
    kinds = {"fidelity": penalise_fidelity, "1d": penalise_line, "stability": penalise_stability}
    kind = kinds.get(settings.penalty, penalise_fidelity)

    def penalise(network: nn.Module, points: Tensor, generator: torch.Generator) -> Tensor:
        return kind(network, points, generator=generator, sigma=settings.sigma)

    return penalise


def _decay(network: nn.Module, _points: Tensor, _generator: torch.Generator, *, power: int) -> Tensor:
    """Return the sum of |w|^power over weights without biases: the baselines of the paper."""
    weights = [weight.abs().pow(power).sum() for name, weight in network.named_parameters() if "weight" in name]
    return torch.stack(weights).sum()


def _stream(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of indices for ever; every epoch is shuffled anew, and a last incomplete batch is left out."""
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
