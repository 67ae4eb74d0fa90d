"""Explainers that leave something behind or need too much, one fault each, for the tests of the kit's checks."""

from __future__ import annotations

import os
import sys
import threading
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tests.bad_explainers import Count, Good
from xaihub import (
    Meta,
    Model,
    Passes,
    ResolvedTarget,
)

_LAST = threading.Event()  # never set: threads wait for it until their timeout


class SwitchesGradientsOn(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        model.module.requires_grad_(True)
        return values


class CountsBatches(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        for name, buffer in model.module.named_buffers():
            buffer += name.endswith("num_batches_tracked")
        return values


class LeavesAHook(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        model.module.register_forward_hook(lambda *_: None)
        return values


class TrainsInstead(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        model.module.train()
        return values


class CleansUpInTheLastLine(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        handle = model.module.register_forward_hook(lambda *_: None)
        values = super().attribute(model, inputs, target)
        handle.remove()
        return values


class ClampsInPlace(Good):
    def explain(self, model: Model, inputs: Tensor, target: Any = None, *, seed: int = 0) -> Any:
        return super().explain(model, inputs.clamp_(-1.5, 1.5), target, seed=seed)


class AllAtOnce(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        maps = []
        for row, image in enumerate(inputs):
            many = image * torch.linspace(0.5, 1, self.samples).view(-1, 1, 1, 1)
            maps.append(self.gradient(model, many, target[row : row + 1]).mean(0) * image)
        return torch.stack(maps)


class KeepsEverything(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        kept = []
        for share in torch.linspace(0.5, 1, self.samples).tolist():
            kept.append(self.gradient(model, inputs * share, target) * inputs)
        return torch.stack(kept).mean(0)


class OneTooMany(Good):
    def __init__(self, *, budget: Count = 4) -> None:
        self.budget = budget

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        total = torch.zeros_like(inputs)
        for share in torch.linspace(0.5, 1, self.budget + 1).tolist():
            total += self.gradient(model, inputs * share, target) * inputs
        return total


class TwiceTheCost(AllAtOnce):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        total = torch.zeros_like(inputs)
        for share in torch.linspace(0.5, 1, 2 * self.samples).tolist():
            total += self.gradient(model, inputs * share, target) * inputs
        return total


class Miscounts(TwiceTheCost):
    def __init__(self, *, samples: Annotated[int, Meta(ge=1, description="Points."), Passes()] = 4) -> None:
        self.samples = samples


class Hoards(Good):
    seen: ClassVar[list[Tensor]] = []

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        self.seen.append(inputs)
        return super().attribute(model, inputs, target)


class HoardsArrays(Good):
    seen: ClassVar[list[Any]] = []

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        self.seen.append(inputs.numpy().copy())
        return super().attribute(model, inputs, target)


class StacksAtTheEnd(Good):
    """Keeps all maps under a name of its own, and no tensor while the network runs."""

    def __init__(self, *, repeats: Count = 500) -> None:
        self.repeats = repeats

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        for share in torch.linspace(0.5, 1, self.repeats).tolist():
            model(inputs * share)
        many = np.repeat(inputs.numpy()[None], self.repeats, axis=0)
        return super().attribute(model, inputs + 0 * torch.from_numpy(many.mean(0)), target)


class SwapsReLU6(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        for parent in list(model.module.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.ReLU6):
                    setattr(parent, name, nn.ReLU())
        return super().attribute(model, inputs, target)


class PatchesAClass(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        for module in model.module.modules():
            if type(module) is nn.SiLU:
                module.__class__ = nn.ReLU  # type: ignore[assignment]
        return values


class LeavesAThread(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        threading.Thread(target=_LAST.wait, args=(20,), daemon=True).start()
        return super().attribute(model, inputs, target)


class RaisesTheRecursionLimit(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        sys.setrecursionlimit(sys.getrecursionlimit() + 1)
        return super().attribute(model, inputs, target)


class ChangesTheFolder(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        os.chdir(os.path.dirname(os.getcwd()))  # noqa: PTH109, PTH120
        return super().attribute(model, inputs, target)


class SetsTheDtype(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        torch.set_float32_matmul_precision("medium")
        return values


class SeedsInItsConstructor(Good):
    def __init__(self) -> None:
        torch.manual_seed(0)


class Prints(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        os.write(1, b"100 %\n")
        return super().attribute(model, inputs, target)
