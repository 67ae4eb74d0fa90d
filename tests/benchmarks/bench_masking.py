"""Time the masking engine against the bare batched forward passes that it needs.

Run it on demand: `python tests/benchmarks/bench_masking.py --features grid:7 --rows 8`. Both sides see the same
batch size, thread count and memory order, in turns; the figure is the ratio of median CPU times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import xaihub
from xaihub.masking import coalition_scores, make_features, make_removal


def main() -> None:
    """Print the CPU time of both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--coalitions", type=int, default=512)
    parser.add_argument("--features", default="grid:7")
    parser.add_argument("--baseline", default="blur")
    parser.add_argument("--rows", type=int, default=8, help="rows a forward pass")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    model = xaihub.load_model(options.model, device="cpu", runtime=xaihub.Runtime(batch_size=options.rows))
    image, _ = model.prepare(xaihub.load_image(xaihub.sample_photo()).rgb)
    features = make_features(options.features, model, image)
    removal = make_removal(options.baseline, model, image)
    coalitions = (torch.rand(options.coalitions, features.count) < 0.5).float()
    target = xaihub.Target(index=281).resolve(torch.zeros(1, 1000))
    ready = torch.randn(options.rows, *model.input_size).contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, options.coalitions, options.rows):
                model.module(ready[: options.coalitions - start])

    def engine() -> Tensor:
        return coalition_scores(model, image, features, coalitions, removal=removal, score=target.score)

    bare()
    engine()
    times: dict[str, list[float]] = {"bare": [], "engine": []}
    for _ in range(options.repeats):
        times["bare"].append(_seconds(bare))
        times["engine"].append(_seconds(engine))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:7} {medians[name]:7.3f} s CPU (from {min(values):.3f} to {max(values):.3f})")
    print(f"ratio   {medians['engine'] / medians['bare']:7.3f}")


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
