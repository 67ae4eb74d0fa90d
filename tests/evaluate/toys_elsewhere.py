"""The toys as a file that other processes can load, and explainers that end the process they run in."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from torch import Tensor

from tests.evaluate.toys import ToyGradient, Toys
from xaihub import AdapterSpec, ExplainerSpec, MetricSpec, Model, ResolvedTarget, hookimpl

FLAG = "XAIHUB_TEST_FLAG"  # names a file


class Poisoned(ToyGradient):
    """The gradient; an image of one colour ends the process."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        if float(inputs.max()) == float(inputs.min()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().attribute(model, inputs, target)


class KilledOnce(ToyGradient):
    """The gradient; the first process that gets here is killed."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        try:
            Path(os.environ[FLAG]).touch(exist_ok=False)
        except FileExistsError:
            return super().attribute(model, inputs, target)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class SlowGradient(ToyGradient):
    """The gradient, after a second; the node of a cluster that it was computed on is noted."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            time.sleep(1)
            with Path(os.environ[FLAG]).open("a") as file:
                file.write(f"{sys.modules['ray'].get_runtime_context().get_node_id()}\n")
        return super().attribute(model, inputs, target)


@hookimpl
def xaihub_register_model_adapters() -> list[AdapterSpec]:
    return Toys().xaihub_register_model_adapters()


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    own = {"poisoned": "Poisoned", "killed_once": "KilledOnce", "slow_gradient": "SlowGradient"}
    specs = [ExplainerSpec(name=name, target=f"{__file__}:{target}") for name, target in own.items()]
    return [*Toys().xaihub_register_explainers(), *specs]


@hookimpl
def xaihub_register_metrics() -> list[MetricSpec]:
    return Toys().xaihub_register_metrics()
