"""Explainers that misbehave in every way, beside two good ones and a model, as a single-file plugin."""

from __future__ import annotations

import builtins
import os
import signal
import sys
import threading
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from xaihub import Attribution, Explainer, Model, ModelAdapter, ModelRequest, Preprocessing
from xaihub import ResolvedTarget as Target
from xaihub.errors import ExplainerRefused


class TinyAdapter(ModelAdapter):
    """Offers "tiny", a small network with fixed weights."""

    def knows(self, name: str) -> bool:
        return name == "tiny"

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        generator = torch.Generator().manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, 3),
        )  # fmt: skip
        for weight in module.parameters():
            weight.data = torch.randn(weight.shape, generator=generator)
        preprocessing = Preprocessing(
            spatial=[lambda image: image.resize((16, 16))], size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3
        )
        return Model(module, name="tiny", preprocessing=preprocessing, classes=("a", "b", "c"), device=device)


class Good(Explainer):
    """The gradient."""

    def attribute(self, model: Model, inputs: Tensor, target: Target) -> Tensor:
        inputs.requires_grad_()
        return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]


class GoodToo(Explainer):
    """The drop in score under noise."""

    stochastic = True

    def attribute(self, model: Model, inputs: Tensor, target: Target) -> Tensor:
        with torch.no_grad():
            drop = target.score(model(inputs)) - target.score(model(inputs + torch.randn_like(inputs)))
        return drop[:, None, None, None] * inputs


class _Hostile(Explainer):
    def attribute(self, model: Model, inputs: Tensor, target: Target) -> Tensor:
        self.harm(model)
        return inputs

    def harm(self, model: Model) -> None:
        raise NotImplementedError


def _conv(model: Model) -> nn.Module:
    return model.module[0]


class ScalesWeights(_Hostile):
    """Changes the weights in place."""

    def harm(self, model: Model) -> None:
        with torch.no_grad():
            for weight in model.module.parameters():
                weight.mul_(1.01)


class WritesThroughData(_Hostile):
    """Changes the weights past the version counters."""

    def harm(self, model: Model) -> None:
        _conv(model).weight.data.mul_(1.01)


class ReplacesData(_Hostile):
    """Gives a weight other memory."""

    def harm(self, model: Model) -> None:
        model.module[5].weight.data = torch.zeros(3, 4)


class ReplacesWeight(_Hostile):
    """Sets another parameter."""

    def harm(self, model: Model) -> None:
        model.module[5].weight = nn.Parameter(torch.zeros(3, 4))


class FreesMemory(_Hostile):
    """Shrinks the memory of a weight."""

    def harm(self, model: Model) -> None:
        model.module[5].weight.data = torch.empty(0)


class ChangesBuffer(_Hostile):
    """Changes a running mean."""

    def harm(self, model: Model) -> None:
        model.module[1].running_mean.add_(1)


class SwapsModules(_Hostile):
    """Replaces ReLU6 by ReLU, as LRP does."""

    def harm(self, model: Model) -> None:
        model.module[2] = nn.ReLU()


class AddsModule(_Hostile):
    """Appends a layer."""

    def harm(self, model: Model) -> None:
        model.module.append(nn.Softmax(1))


class ReordersModules(_Hostile):
    """Moves a layer to the end."""

    def harm(self, model: Model) -> None:
        table = model.module._modules
        table["2"] = table.pop("2")


class SetsForward(_Hostile):
    """Replaces the forward method of one module."""

    def harm(self, model: Model) -> None:
        model.module[2].forward = lambda inputs: inputs


class PatchesClass(_Hostile):
    """Replaces the forward method of a class."""

    def harm(self, model: Model) -> None:
        nn.ReLU6.forward = lambda self, inputs: inputs


class ChangesClass(_Hostile):
    """Makes a module one of another class."""

    def harm(self, model: Model) -> None:
        model.module[2].__class__ = nn.Identity


class PatchesFunction(_Hostile):
    """Replaces a function of torch."""

    def harm(self, model: Model) -> None:
        functional.batch_norm = lambda inputs, *args, **values: inputs


class ChangesSetting(_Hostile):
    """Changes a setting of a layer."""

    def harm(self, model: Model) -> None:
        model.module[1].eps = 10.0


class StaysInTraining(_Hostile):
    """Leaves the network in training mode."""

    def harm(self, model: Model) -> None:
        model.module.train()


class UnfreezesWeights(_Hostile):
    """Leaves weights that require gradients."""

    def harm(self, model: Model) -> None:
        model.module.requires_grad_(True)


class LeavesGradient(_Hostile):
    """Leaves a gradient."""

    def harm(self, model: Model) -> None:
        _conv(model).weight.grad = torch.ones(4, 3, 3, 3)


class LeavesHook(_Hostile):
    """Leaves a hook that doubles an output."""

    def harm(self, model: Model) -> None:
        _conv(model).register_forward_hook(lambda module, inputs, output: output * 2)


class LeavesGlobalHook(_Hostile):
    """Leaves a hook on all modules."""

    def harm(self, model: Model) -> None:
        nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 2)


class ReplacesNetwork(_Hostile):
    """Gives the model another network."""

    def harm(self, model: Model) -> None:
        model.module = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))


class ForgetsClasses(_Hostile):
    """Changes what the model knows of itself."""

    def harm(self, model: Model) -> None:
        model.classes = ()


class ChangesRuntime(_Hostile):
    """Changes how the model runs."""

    def harm(self, model: Model) -> None:
        model.runtime.batch_size = 1


class SetsThreads(_Hostile):
    """Changes the number of threads."""

    def harm(self, model: Model) -> None:
        torch.set_num_threads(torch.get_num_threads() + 1)


class SetsDtype(_Hostile):
    """Changes the default dtype."""

    def harm(self, model: Model) -> None:
        torch.set_default_dtype(torch.float64)


class SetsDevice(_Hostile):
    """Changes the default device."""

    def harm(self, model: Model) -> None:
        torch.set_default_device("meta")


class SetsDeterministic(_Hostile):
    """Changes the deterministic mode."""

    def harm(self, model: Model) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)


class SetsPrecision(_Hostile):
    """Changes the precision of matrix products."""

    def harm(self, model: Model) -> None:
        torch.set_float32_matmul_precision("medium")


class MovesAway(_Hostile):
    """Changes the working directory."""

    def harm(self, model: Model) -> None:
        os.chdir("/")


class LimitsRecursion(_Hostile):
    """Changes the recursion limit."""

    def harm(self, model: Model) -> None:
        sys.setrecursionlimit(sys.getrecursionlimit() + 7)


class IgnoresTermination(_Hostile):
    """Makes the program deaf to a request to end."""

    def harm(self, model: Model) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class ChangesBuiltins(_Hostile):
    """Replaces a built-in function."""

    def harm(self, model: Model) -> None:
        builtins.sorted = list


class ClosesOutput(_Hostile):
    """Replaces standard output."""

    def harm(self, model: Model) -> None:
        sys.stdout = None


class RaisesOnOverflow(_Hostile):
    """Turns NumPy's warnings into errors."""

    def harm(self, model: Model) -> None:
        np.seterr(all="raise")


class LeavesThread(_Hostile):
    """Leaves a thread that runs on."""

    def harm(self, model: Model) -> None:
        threading.Thread(target=time.sleep, args=(3,), daemon=True).start()


class DrawsGlobally(_Hostile):
    """Declares parallel and draws from the global generators."""

    parallel = True

    def harm(self, model: Model) -> None:
        torch.rand(3)
        np.random.rand()


class RaisesError(_Hostile):
    """Raises."""

    def harm(self, model: Model) -> None:
        raise ValueError("on purpose")


class Exits(_Hostile):
    """Exits as if all were well."""

    def harm(self, model: Model) -> None:
        sys.exit(0)


class EndsProcess(_Hostile):
    """Ends the process as if all were well."""

    def harm(self, model: Model) -> None:
        os._exit(0)


class BecomesAnother(_Hostile):
    """Replaces the process by one in which all is well."""

    def harm(self, model: Model) -> None:
        os.execvp("true", ["true"])  # noqa: S606


class Interrupts(_Hostile):
    """Pretends that the user pressed Ctrl-C."""

    def harm(self, model: Model) -> None:
        raise KeyboardInterrupt


class _Unusual(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class RaisesUnusually(_Hostile):
    """Raises a BaseException that has no text."""

    def harm(self, model: Model) -> None:
        raise _Unusual


class Refuses(_Hostile):
    """Refuses."""

    def harm(self, model: Model) -> None:
        raise ExplainerRefused("not today")


class ReturnsNan(Explainer):
    """Returns NaN."""

    def attribute(self, model: Model, inputs: Tensor, target: Target) -> Tensor:
        return inputs * float("nan")


class ReturnsNonsense(Explainer):
    """Returns a record that cannot be written."""

    def attribute(self, model: Model, inputs: Tensor, target: Target) -> Attribution:
        return Attribution(values=inputs, details={"what": _Unusual()})
