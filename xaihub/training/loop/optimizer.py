"""timm's optimizers and schedules, and the groups of weights with their own learning rate or weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from xaihub.errors import ModelError
from xaihub.objective import Group
from xaihub.training.config import Config


def weight_groups(
    network: nn.Module, own: Sequence[Group], head: nn.Module | None, config: Config
) -> list[dict[str, Any]]:
    """Sort the trainable weights into groups with one learning rate and one weight decay each.

    Weight decay is not applied to norms, biases and what the network exempts, unless a group in `own` sets it.
    """
    of_objective = {id(weight): group for group in own for weight in group.weights}
    of_head = {id(weight) for weight in head.parameters()} if head is not None else set()
    # timm's networks name the weights that they exempt.
    exempting = [(prefix, part) for prefix, part in network.named_modules() if hasattr(part, "no_weight_decay")]
    exempt = {f"{prefix}.{name}".lstrip(".") for prefix, part in exempting for name in part.no_weight_decay()}
    of_layer = _layer_scales(network, config.layer_decay) if config.layer_decay is not None else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if not weight.requires_grad:
            continue
        group = of_objective.get(id(weight))
        with_head = group.like_head if group else id(weight) in of_head
        scale = (group.lr_scale if group else 1.0) * (config.head_lr_scale if with_head and of_head else 1.0)
        scale *= of_layer.get(id(weight), 1.0)
        plain = weight.ndim <= 1 or name.endswith(".bias") or name in exempt
        decay = 0.0 if plain else config.decay
        if group is not None and group.weight_decay is not None:
            decay = group.weight_decay
        groups.setdefault((scale, decay), []).append(weight)
    return [
        {"params": weights, "lr": config.lr * scale, "weight_decay": decay}
        for (scale, decay), weights in groups.items()
    ]


def _layer_scales(network: nn.Module, decay: float) -> dict[int, float]:
    """Return the multiplier of each weight of timm's network by its id: 1 at the output, `decay` per layer before.

    Raises:
        ModelError: There is no network whose layers timm knows.
    """
    known = next((part for part in network.modules() if hasattr(part, "group_matcher")), None)
    groups = [] if known is None else param_groups_layer_decay(known, layer_decay=decay)
    if len({group["lr_scale"] for group in groups}) < 2:
        raise ModelError("layer_decay needs a network whose layers timm knows", hint="drop layer_decay")
    return {id(weight): group["lr_scale"] for group in groups for weight in group["params"]}


def rates(optimizer: torch.optim.Optimizer, config: Config) -> dict[str, float]:
    """Return the current learning rates for the log: "lr" of the plan's rate, and "lr_head" of the classifier."""
    group = optimizer.param_groups[0]  # all follow one schedule
    rate = config.lr * group["lr"] / group["initial_lr"]
    return {"lr": rate, "lr_head": rate * config.head_lr_scale}


def make_optimizer(groups: list[dict[str, Any]], config: Config) -> torch.optim.Optimizer:
    """Return the plan's optimizer over groups of weights."""
    more: dict[str, Any] = {"momentum": 0.9} if config.optimizer == "sgd" else {}
    made: torch.optim.Optimizer = create_optimizer_v2(
        groups, opt=config.optimizer, lr=config.lr, weight_decay=config.decay, **more
    )
    return made


def make_schedule(optimizer: torch.optim.Optimizer, config: Config, total: int) -> Scheduler:
    """Return the plan's schedule; `step_update(n)` sets the learning rates of step n, counted from 1."""
    rising = round(config.warmup * total)
    shared: dict[str, Any] = {"warmup_t": rising, "warmup_lr_init": 0.0, "warmup_prefix": True, "t_in_epochs": False}
    if config.schedule == "cosine":
        # One step more: the rate reaches zero after the last step, not in it.
        return CosineLRScheduler(optimizer, t_initial=max(total + 1 - rising, 1), **shared)
    falls = max((total - rising) // 3, 1) if config.schedule == "step" else total + 1
    return StepLRScheduler(optimizer, decay_t=falls, decay_rate=0.1, **shared)
