"""Small networks behind the gate, and their training: many at once, since each alone is mostly overhead."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub_scores_activation.gate import ScoresActivation, param_groups
from xaihub_scores_activation.reproduction.tables import Table

HIDDEN = (64, 32)
LR = 1e-3
BATCH = 32
TOKEN = 32  # width of the transformer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is made and trained; every value is our choice, since the paper's are unknown."""

    gated: bool = True  # whether the gate precedes the first linear layer; the baseline network has none
    gain: float | Literal["d"] = 1.0
    score_lr_mult: float = 1.0  # learning-rate multiplier for the scores; 1 is the literal reading
    epochs: int = 100


class Network(nn.Sequential):
    """A network whose first part is the gate, except in a baseline network."""

    @property
    def weights(self) -> Tensor:
        """(d,) weights of the gate."""
        gate = self[0]
        assert isinstance(gate, ScoresActivation)  # noqa: S101 - never read from baseline networks
        return gate.weights()


def make_mlp(columns: int, classes: int, recipe: Recipe, seed: int) -> Network:
    """Return [gate,] linear, ReLU, linear, ReLU, linear; with and without gate, a seed gives the same weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        sizes = (columns, *HIDDEN)
        layers: list[nn.Module] = []
        for inner, outer in pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        layers.append(nn.Linear(sizes[-1], classes))
    return Network(*_gate(columns, recipe), *layers)


def make_transformer(columns: int, classes: int, recipe: Recipe, seed: int) -> Network:
    """Return [gate,] a linear embedding of the whole row as one token, two encoder layers, and a linear head."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(TOKEN, nhead=4, dim_feedforward=64, dropout=0.1, batch_first=True)
        encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        parts = [nn.Linear(columns, TOKEN), nn.Unflatten(1, (1, TOKEN)), encoder, nn.Flatten()]
        return Network(*_gate(columns, recipe), *parts, nn.Linear(TOKEN, classes))


def _gate(columns: int, recipe: Recipe) -> list[nn.Module]:
    return [ScoresActivation(columns, gain=recipe.gain)] if recipe.gated else []


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the fraction of rows that are classified as labelled."""
    network.eval()
    return float((network(x).argmax(1) == y).double().mean())


def train(tables: Sequence[Table], recipes: Sequence[Recipe], seeds: Sequence[int]) -> list[Network]:
    """Train one MLP per (table, recipe, seed), all of one width, side by side.

    The networks share nothing but the loop: each step is one batched product for all networks, and Adam works entry by
    entry, so each result equals that of training alone, up to rounding (a test compares).
    """
    columns = tables[0].columns
    networks = [
        make_mlp(columns, table.classes, recipe, seed)
        for table, recipe, seed in zip(tables, recipes, seeds, strict=True)
    ]
    linears = [[part for part in network if isinstance(part, nn.Linear)] for network in networks]
    levels = [
        tuple(
            nn.Parameter(torch.stack([getattr(part, kind).detach() for part in parts])) for kind in ("weight", "bias")
        )
        for parts in zip(*linears, strict=True)
    ]  # (S, out, in) weights and (S, out) biases
    scores = nn.Parameter(torch.zeros(len(networks), columns))  # (S, d)
    gain = torch.tensor([[float(columns if recipe.gain == "d" else recipe.gain)] for recipe in recipes])
    gated = torch.tensor([[recipe.gated] for recipe in recipes])
    # Adam's step does not depend on the scale of a gradient, so a learning rate of its own per network is a factor on
    # what the optimizer moves: s = mult * raw.
    mult = torch.tensor([[recipe.score_lr_mult] for recipe in recipes])
    optimizer = torch.optim.Adam([*(part for level in levels for part in level), scores], lr=LR, eps=1e-8)
    x, y = torch.stack([table.train_x for table in tables]), torch.stack([table.train_y for table in tables])
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows = x.shape[1]
    for _epoch in range(recipes[0].epochs):
        order = torch.stack([torch.randperm(rows, generator=generator) for generator in orders])  # (S, n)
        shuffled = x.gather(1, order.unsqueeze(2).expand(-1, -1, columns))
        labels = y.gather(1, order)
        for start in range(0, rows, BATCH):
            here = slice(start, start + BATCH)
            factor = torch.where(gated, gain * (mult * scores).softmax(1), 1.0)
            out = shuffled[:, here] * factor.unsqueeze(1)
            for number, (weight, bias) in enumerate(levels):
                out = torch.baddbmm(bias.unsqueeze(1), out if number == 0 else out.relu(), weight.transpose(1, 2))
            batch = labels[:, here]  # out is (S, b, C)
            loss = F.cross_entropy(out.flatten(0, 1), batch.flatten(), reduction="sum") / batch.shape[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        for number, (network, parts) in enumerate(zip(networks, linears, strict=True)):
            for part, (weight, bias) in zip(parts, levels, strict=True):
                part.weight.copy_(weight[number])
                part.bias.copy_(bias[number])
            if isinstance(network[0], ScoresActivation):
                network[0].scores.copy_((mult * scores)[number])
    return networks


def train_alone(network: Network, table: Table, recipe: Recipe, seed: int) -> float:
    """Train one network in the ordinary way, in place, and return its CPU seconds."""
    groups = param_groups(network, LR, recipe.score_lr_mult)
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], lr=LR)
    order = torch.Generator().manual_seed(seed)
    started = time.process_time()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)  # dropout
        network.train()
        for _epoch in range(recipe.epochs):
            for picks in torch.randperm(len(table.train_y), generator=order).split(BATCH):
                loss = F.cross_entropy(network(table.train_x[picks]), table.train_y[picks])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    seconds = time.process_time() - started
    network.eval()
    return seconds
