"""Time training steps with ExpO against plain ones: the rows that go through the network predict the time.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_expo_step.py`. All sides take turns in one process on
one thread; the figures are medians of the process's CPU time, as ratios to a plain step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from xaihub import Model, Objective, Preprocessing, Step
from xaihub_cross_entropy.method import CrossEntropy
from xaihub_expo.objectives import Fidelity, LineFidelity, Stability

SIDES: dict[str, Objective] = {
    "plain": CrossEntropy(),
    "stability, pixels": Stability(weight=1.0),
    "stability, patches": Stability(weight=1.0, neighbourhood="patches"),
    "1d (a quarter x 8)": LineFidelity(weight=1.0),
    "fidelity (1 x 48)": Fidelity(weight=1.0, samples=48, penalty_batch=1),
    "fidelity (1 x 48), every 4": Fidelity(weight=1.0, samples=48, penalty_batch=1, every=4),
}


def main() -> None:
    """Print rows and time of a step, as ratios to a plain one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "vit_tiny_patch16_224", "tf_efficientnet_lite0"])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=8, help="a multiple of 4, for the side that skips steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.size} pixels, batches of {options.batch}; time and rows are ratios to a plain step")
    for name in options.models:
        size = {"img_size": options.size} if name.startswith("vit") else {}
        network = timm.create_model(name, num_classes=10, **size).train()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # as with freeze_norm, which is how fine-tuning is done
        unit = Preprocessing(spatial=(), size=(3, options.size, options.size), mean=(0.5,) * 3, std=(0.25,) * 3)
        modes = {module: module.training for module in network.modules()}
        model = Model(network, name=name, preprocessing=unit)
        for module, training in modes.items():
            module.training = training
        _compare(model, options.batch, options.repeats)


def _compare(model: Model, batch: int, repeats: int) -> None:
    g = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(batch, *model.input_size, generator=g), torch.randint(10, (batch,), generator=g)
    optimiser = torch.optim.SGD(model.module.parameters(), lr=1e-4, momentum=0.9)
    for objective in SIDES.values():
        objective.wrap(model)
        objective.begin(model.module, [], g, 10)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    rows: dict[str, int] = dict.fromkeys(SIDES, 0)
    for number in range(-1, repeats):
        for name, objective in SIDES.items():
            counted, took = _timed(model, lambda o=objective, n=number: _step(o, model, optimiser, inputs, labels, n))
            if number >= 0:  # the first round warms up
                seconds[name].append(took)
                rows[name] += counted
    plain = statistics.median(seconds["plain"])
    print(f"{model.name}: a plain step takes {1000 * plain:.0f} ms")
    for name, times in seconds.items():
        # Sides that skip steps are judged by whole cycles of four.
        typical = statistics.median(
            [sum(times[i : i + 4]) / 4 for i in range(0, repeats, 4)] if "every" in name else times
        )
        ratio, predicted = typical / plain, rows[name] / (repeats * batch)
        print(f"  {name:28} rows {predicted:5.2f}   time {ratio:5.2f}   time / rows {ratio / predicted:.2f}")


def _step(
    objective: Objective, model: Model, optimiser: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, number: int
) -> None:
    step = Step(number=max(number, 0), total=100, generator=torch.Generator().manual_seed(number + 1))
    optimiser.zero_grad()
    objective.loss(model.module, inputs, labels, step).total.backward()
    optimiser.step()


def _timed(model: Model, run: Callable[[], None]) -> tuple[int, float]:
    rows = [0]
    handle = model.module.register_forward_hook(lambda _m, _i, output: rows.append(len(output)))
    started = time.process_time()
    run()
    took = time.process_time() - started
    handle.remove()
    return sum(rows), took


if __name__ == "__main__":
    main()
