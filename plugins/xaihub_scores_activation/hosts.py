"""Small networks behind the layer, and their training: many at a time, since small networks are all overhead."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub_scores_activation.layer import ScoresActivation, param_groups
from xaihub_scores_activation.tables import Table

__all__ = ["Recipe", "Trained", "accuracy", "make_mlp", "make_transformer", "train", "train_alone"]

HIDDEN = (64, 32)
LR = 1e-3
BATCH = 32
TOKEN = 32  # width of the transformer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is made and trained; every value is our choice, since the paper's are unknown.

    Attributes:
        gated: Whether the layer stands before the first linear layer; if not, it is the bare twin.
        gain: The layer's gain.
        score_lr_mult: Factor on the learning rate of the scores; 1 is the literal reading.
        epochs: Passes over the training rows.
    """

    gated: bool = True
    gain: float | Literal["d"] = 1.0
    score_lr_mult: float = 1.0
    epochs: int = 100


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network.

    Attributes:
        network: It, with a `ScoresActivation` as its first part unless it is a bare twin.
        history: (epochs, d) weights after each epoch; empty for a bare twin.
    """

    network: nn.Sequential
    history: Tensor

    @property
    def weights(self) -> Tensor:
        """(d,) weights of the gate."""
        gate = self.network[0]
        assert isinstance(gate, ScoresActivation)  # noqa: S101 - callers ask gated networks only
        return gate.weights()


def make_mlp(columns: int, classes: int, recipe: Recipe, seed: int) -> nn.Sequential:
    """Return [gate,] linear, ReLU, linear, ReLU, linear; the twins of one seed start from the same weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        sizes = (columns, *HIDDEN)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        layers.append(nn.Linear(sizes[-1], classes))
    return nn.Sequential(*_gate(columns, recipe), *layers)


def make_transformer(columns: int, classes: int, recipe: Recipe, seed: int) -> nn.Sequential:
    """Return [gate,] a linear embedding of the whole row as one token, two encoder layers, and a linear head."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(TOKEN, nhead=4, dim_feedforward=64, dropout=0.1, batch_first=True)
        encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        parts = [nn.Linear(columns, TOKEN), nn.Unflatten(1, (1, TOKEN)), encoder, nn.Flatten()]
        return nn.Sequential(*_gate(columns, recipe), *parts, nn.Linear(TOKEN, classes))


def _gate(columns: int, recipe: Recipe) -> list[nn.Module]:
    return [ScoresActivation(columns, gain=recipe.gain)] if recipe.gated else []


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of rows that a network classifies as labelled."""
    network.eval()
    return float((network(x).argmax(1) == y).double().mean())


def train(tables: Sequence[Table], recipes: Sequence[Recipe], seeds: Sequence[int]) -> list[Trained]:
    """Train one MLP for each (table, recipe, seed), all of one width, side by side.

    The networks share nothing but the loop: each step is one batched product for all of them, and Adam works entry by
    entry. The result is that of training each alone with Adam, up to rounding (a test compares).
    """
    networks = [
        make_mlp(table.columns, table.classes, recipe, seed)
        for table, recipe, seed in zip(tables, recipes, seeds, strict=True)
    ]
    linears = [[part for part in network if isinstance(part, nn.Linear)] for network in networks]
    depth = len(linears[0])
    weights = [_stacked([parts[level].weight for parts in linears]) for level in range(depth)]  # (S, out, in)
    biases = [_stacked([parts[level].bias for parts in linears]) for level in range(depth)]  # (S, out)
    scores = nn.Parameter(torch.zeros(len(networks), tables[0].columns))  # (S, d)
    gain = torch.tensor([[_gain(recipe, tables[0].columns)] for recipe in recipes])
    gated = torch.tensor([[recipe.gated] for recipe in recipes])
    mult = torch.tensor([[recipe.score_lr_mult] for recipe in recipes])
    # Adam's step does not depend on the scale of a gradient, so a learning rate of its own for each network is a scale
    # on what the optimiser moves: s = mult * raw, with its gradient.
    optimiser = torch.optim.Adam([*weights, *biases, scores], lr=LR, eps=1e-8)
    x, y = torch.stack([table.train_x for table in tables]), torch.stack([table.train_y for table in tables])
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows, history = x.shape[1], []
    for _epoch in range(recipes[0].epochs):
        order = torch.stack([torch.randperm(rows, generator=generator) for generator in orders])  # (S, n)
        shuffled = x.gather(1, order.unsqueeze(2).expand(-1, -1, x.shape[2]))
        labels = y.gather(1, order)
        for start in range(0, rows, BATCH):
            here = slice(start, start + BATCH)
            factor = torch.where(gated, gain * (mult * scores).softmax(1), 1.0)
            out = shuffled[:, here] * factor.unsqueeze(1)
            for level, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                out = torch.baddbmm(bias.unsqueeze(1), out, weight.transpose(1, 2))
                out = out.relu() if level < depth - 1 else out  # (S, b, C) in the end
            batch = labels[:, here]
            loss = F.cross_entropy(out.flatten(0, 1), batch.flatten(), reduction="sum") / batch.shape[1]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        history.append((mult * scores).detach().softmax(1))
    return _unstacked(networks, linears, weights, biases, (mult * scores).detach(), torch.stack(history, 1))


def _gain(recipe: Recipe, columns: int) -> float:
    return float(columns if recipe.gain == "d" else recipe.gain)


def _stacked(parts: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([part.detach() for part in parts]))


@torch.no_grad()
def _unstacked(
    networks: list[nn.Sequential],
    linears: list[list[nn.Linear]],
    weights: list[nn.Parameter],
    biases: list[nn.Parameter],
    scores: Tensor,
    history: Tensor,
) -> list[Trained]:
    found = []
    for number, (network, parts) in enumerate(zip(networks, linears, strict=True)):
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            part.weight.copy_(weight[number])
            part.bias.copy_(bias[number])
        gate, rows = network[0], history[number, :0]
        if isinstance(gate, ScoresActivation):
            gate.scores.copy_(scores[number])
            rows = history[number]
        found.append(Trained(network=network, history=rows))
    return found


def train_alone(network: nn.Sequential, table: Table, recipe: Recipe, seed: int) -> tuple[Trained, float]:
    """Train one network in the ordinary way; also return the CPU seconds that it took."""
    groups = param_groups(network, LR, recipe.score_lr_mult)
    optimiser = torch.optim.Adam([group for group in groups if group["params"]], lr=LR)
    order, history = torch.Generator().manual_seed(seed), []
    started = time.process_time()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)  # dropout
        network.train()
        for _epoch in range(recipe.epochs):
            for picks in torch.randperm(len(table.train_y), generator=order).split(BATCH):
                loss = F.cross_entropy(network(table.train_x[picks]), table.train_y[picks])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            if recipe.gated:
                history.append(network[0].weights())  # type: ignore[operator]
    seconds = time.process_time() - started
    network.eval()
    rows = torch.stack(history) if history else torch.empty(0, table.columns)
    return Trained(network=network, history=rows), seconds
