"""Time a plain training step of `xaihub train` against a loop written by hand.

Run it on demand: `python tests/benchmarks/bench_train.py --model efficientnet_lite0 --size 96`. Both sides see the same
batch in memory, the same network, optimiser, clipping and thread count, in turns; the figure is the ratio of median CPU
times of a step. Further objectives are compared with the plain step, in the last epoch, when all of their terms count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import timm.optim
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub.hub import Hub
from xaihub.training.config import Config, checked
from xaihub.training.data.loaders import Batch
from xaihub.training.head import find_head, with_classes
from xaihub.training.loop.optimizer import weight_groups
from xaihub.training.loop.trainer import Trainer
from xaihub.training.setup import accelerating


class Memory:
    """Batches that are there already, so that reading images is no part of what is timed."""

    def __init__(self, inputs: Tensor, labels: Tensor, steps: int) -> None:
        self.inputs, self.labels, self.steps = inputs, labels, steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the same batch again and again."""
        for _ in range(start, self.steps):
            yield [Batch(inputs=self.inputs, labels=self.labels, fraction=1.0)]

    def validation(self) -> Iterator[Batch]:
        """Yield nothing."""
        yield from ()


def main() -> None:
    """Print the CPU time of a step on both sides, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--objective", action="append", default=[], help="A further objective; may be repeated.")
    options = parser.parse_args()
    torch.set_num_threads(1)

    config = checked({"data": "memory", "model": options.model, "size": options.size, "epochs": 3})
    torch.manual_seed(0)
    inputs = torch.randn(options.batch_size, 3, options.size, options.size)
    labels = torch.arange(options.batch_size) % 4
    with accelerating(config, "cpu") as accelerator:
        made = {
            name: ours(config, accelerator, name, inputs, labels)
            for name in dict.fromkeys(["cross_entropy", *options.objective])
        }
        bare = by_hand(config, inputs, labels)
        work: dict[str, Callable[[], object]] = {"by hand": bare, **made}
        times: dict[str, list[float]] = {name: [] for name in work}
        for turn in range(options.steps + 2):
            for name, step in work.items():
                start = time.process_time()
                step()
                if turn > 1:  # the first steps make optimiser state and choose kernels
                    times[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{options.model} at {options.size} px, batches of {options.batch_size}, {options.steps} steps in turns")
    for name, values in times.items():
        against = "by hand" if name in ("by hand", "cross_entropy") else "cross_entropy"
        print(
            f"{name:20} {medians[name]:7.3f} s CPU (from {min(values):.3f} to {max(values):.3f}),"
            f" {medians[name] / medians[against]:.3f} x {against}"
        )


def ours(config: Config, accelerator: Any, name: str, inputs: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return a step of the training loop."""
    hub = Hub()
    model = with_classes(hub.load_model(config.model, device="cpu", size=config.size), ("a", "b", "c", "d"), seed=0)
    objective = hub.get_objective(name)
    head = find_head(model)
    network = objective.wrap(model)
    trainer = Trainer(
        objective,
        network,
        loader=Memory(inputs, labels, 1000),
        config=config,
        accelerator=accelerator,
        head=head,
    )
    trainer.begin([(inputs, labels)])
    return lambda: trainer.try_step(at_the_end=True)


def by_hand(config: Config, inputs: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return a step of a loop as one would write it."""
    model = with_classes(Hub().load_model(config.model, device="cpu", size=config.size), ("a", "b", "c", "d"), seed=0)
    network = model.module.train().requires_grad_(True)
    groups = weight_groups(network, [], find_head(model), config)
    optimizer = timm.optim.create_optimizer_v2(groups, opt="adamw", lr=config.lr)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
