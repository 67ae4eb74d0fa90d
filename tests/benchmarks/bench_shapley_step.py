"""A training step with the Shapley objective against a plain one, alternating in one run.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_shapley_step.py`. A step is loss, backward pass,
clipping and AdamW; times are CPU time. The bound is 1 + coalitions, the number of copies that pass through the network.

The GNU C library returns large blocks to the system as soon as they are freed, and allocating them again costs fresh
pages. Three times the rows cross that size where one does not, so the benchmark keeps freed memory, as `xaihub train`
does, and with `--bf16` uses its faster backward pass of depthwise convolutions, unless `--as-is` is given.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch

import xaihub
from xaihub import Model, Objective, Step
from xaihub.training.loop.depthwise import quick_depthwise
from xaihub.training.memory import keep_freed_memory


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["efficientnet_lite0", "resnet18", "vit_tiny_patch16_224"])
    parser.add_argument("--rows", type=int, default=4, help="images per step")
    parser.add_argument("--coalitions", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bf16", action="store_true", help="use bfloat16")
    parser.add_argument("--as-is", action="store_true", help="without the speed-ups of xaihub train")
    options = parser.parse_args()
    if not options.as_is:
        keep_freed_memory()
    torch.set_num_threads(1)
    hub = xaihub.Hub()
    for name in options.models:
        model = hub.load_model(name, device="cpu", scratch=name != "efficientnet_lite0")
        mask = "attention" if name.startswith("vit") else "pixel"
        sides = {
            "plain": hub.get_objective("cross_entropy"),
            "shapley": hub.get_objective("shapley", coalitions=options.coalitions, mask=mask),
        }
        steps = {
            side: _Stepper(model.around(copy.deepcopy(model.module)), made, half=options.bf16, quick=not options.as_is)
            for side, made in sides.items()
        }
        inputs = torch.randn(options.rows, *model.input_size)
        labels = torch.arange(options.rows)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(options.repeats + 1):
            for side, stepper in steps.items():
                started = time.process_time()
                stepper(inputs, labels)
                times[side] += [time.process_time() - started] if turn else []  # the first turn warms up
        plain, shapley = (statistics.median(seconds) for seconds in times.values())
        print(
            f"{name:24} {options.rows} images, {options.coalitions} coalitions, {mask} mask:"
            f" plain {plain:.3f} s, shapley {shapley:.3f} s, ratio {shapley / plain:.2f}",
            flush=True,
        )


class _Stepper:
    def __init__(self, model: Model, objective: Objective, *, half: bool, quick: bool) -> None:
        self.objective: Any = objective
        self.half, self.precision = half, "bf16" if half and quick else "fp32"
        self.network = objective.wrap(model).train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5)

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        step = Step(number=50, total=100, generator=torch.Generator().manual_seed(0))
        self.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half):
            cost = self.objective.loss(self.network, inputs, labels, step).total
        with quick_depthwise(cost.device, self.precision):
            cost.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()


if __name__ == "__main__":
    main()
