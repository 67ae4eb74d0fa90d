"""Objectives under test, as a plugin, and the plan of a small run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub import Group, Losses, Meta, Model, Objective, ObjectiveSpec, ParameterError, Step, hookimpl

SEEN: list[tuple[Tensor, Tensor]] = []


def plan(data: object, **changes: Any) -> dict[str, Any]:
    """The plan of a small run."""
    small = {"data": str(data), "model": "test_resnet", "scratch": True, "size": 32, "epochs": 2, "batch_size": 6,
             "lr": 1e-3, "val": 0.25}  # fmt: skip
    return {**small, **changes}


class Noted(Objective):
    """Cross-entropy that keeps every batch that it sees."""

    on_features = True

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        if network.training:
            SEEN.append((inputs.clone(), labels.clone()))
        logits = network(inputs)
        return Losses(terms={"cross_entropy": F.cross_entropy(logits.float(), labels)}, logits=logits)


class Diverging(Noted):
    """A loss that is NaN from a step on."""

    def __init__(self, *, at: Annotated[int, Meta(ge=0)] = 3, gradient: bool = False) -> None:
        self.at = at
        self.gradient = gradient

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        found = super().loss(network, inputs, labels, step)
        bad = step.number >= self.at
        # The square root of zero is zero, and its slope is not finite.
        steep = (found.logits * 0).sum().abs().sqrt() if bad else found.logits.sum() * 0
        extra = steep if self.gradient else found.logits.sum() * (float("nan") if bad else 0)
        return Losses(terms={**found.terms, "extra": extra}, logits=found.logits)


class Scaled(nn.Module):
    """A network with a factor on its logits, which learns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.factor * self.inner(inputs)


class Masked(Objective):
    """An objective that changes the network, draws from every generator, calibrates and counts."""

    def __init__(
        self,
        *,
        lambda_: Annotated[float, Meta(ge=0, description="weight of the masked copy")] = 0.5,
    ) -> None:
        self.lambda_ = lambda_

    def wrap(self, model: Model) -> nn.Module:
        return Scaled(model.module)

    def groups(self, network: nn.Module) -> list[Group]:
        assert isinstance(network, Scaled)
        return [Group(weights=[network.factor], lr_scale=3.0, weight_decay=0.0)]

    def begin(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator, epochs: int
    ) -> None:
        with torch.no_grad():
            costs = [float(F.cross_entropy(network(inputs), labels)) for inputs, labels in batches]
        self.state["scale"] = sum(costs) / len(costs) * float(torch.rand((), generator=generator) + torch.rand(()))

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        kept = torch.rand(len(inputs), 1, 4, 4, generator=step.generator).round().repeat_interleave(8, 2)
        hidden = inputs * kept.repeat_interleave(8, 3) + 0.1 * torch.randn_like(inputs)
        logits, masked = network(torch.cat([inputs, hidden])).chunk(2)
        self.state["calls"] = self.state.get("calls", 0) + 1
        terms = {
            "cross_entropy": F.cross_entropy(logits.float(), labels),
            "masked": self.lambda_ * self.state["scale"] * F.cross_entropy(masked.float(), labels),
        }
        return Losses(terms=terms, logits=logits, notes={"kept": float(kept.mean())})

    def epoch_end(self, network: nn.Module, epoch: int) -> Mapping[str, Any]:
        return {"calls": self.state["calls"]}

    def figures(self, network: nn.Module, record: Mapping[str, Any]) -> Mapping[str, float]:
        assert isinstance(network, Scaled)
        assert not network.training
        return {"kept_pixels": record["val/kept"], "factor": float(network.factor)} if "val/kept" in record else {}

    def advice(self, figures: Mapping[str, float]) -> list[str]:
        return [f"the factor is {figures['factor']:.6f}"] if figures else ["nothing was measured"]


class Overwriting(Noted):
    """A network that writes to its input, and a loss that needs the input afterwards."""

    def wrap(self, model: Model) -> nn.Module:
        network: nn.Module = model.module
        next(network.children()).register_forward_pre_hook(_halve)
        return network

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        before = inputs.clone()
        found = super().loss(network, inputs, labels, step)
        if not torch.equal(inputs, before):
            raise ParameterError("the network wrote to the inputs of the loss")
        return found


def _halve(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    arguments[0].mul_(0.5)


class Unready(Noted):
    """An objective that refuses its parameters only when it has seen the images."""

    def begin(
        self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator, epochs: int
    ) -> None:
        raise ParameterError("these images do not suit")


class Failing(Noted):
    """An objective that leaves in one of its methods."""

    at: str = "loss"

    def _leave(self, method: str) -> None:
        if method == self.at:
            raise SystemExit(0)

    def wrap(self, model: Model) -> nn.Module:
        self._leave("wrap")
        return super().wrap(model)

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        if step.number:
            self._leave("loss")
        return super().loss(network, inputs, labels, step)

    def epoch_end(self, network: nn.Module, epoch: int) -> Mapping[str, Any]:
        self._leave("epoch_end")
        return super().epoch_end(network, epoch)


@hookimpl
def xaihub_register_objectives() -> list[ObjectiveSpec]:
    """Register the objectives."""
    kinds = {"noted": Noted, "diverging": Diverging, "masked": Masked, "overwriting": Overwriting, "unready": Unready,
             "failing": Failing}  # fmt: skip
    return [ObjectiveSpec(name=name, target=f"{__name__}:{kind.__name__}") for name, kind in kinds.items()]
