"""Time the causal search against the bare batched forward passes that it needs.

Run it on demand: `python tests/benchmarks/bench_causal.py --iterations 4`. Both sides see as many rows, the same batch
size, thread count and memory order, in turns; the figure is the ratio of median CPU times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import xaihub
from xaihub.masking import batch_rows
from xaihub_convad.explainers import ConvAD, Rex


def main() -> None:
    """Print the CPU time of both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--explainer", choices=["rex", "convad"], default="rex")
    parser.add_argument("--baseline", default="auto")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = xaihub.load_model(options.model, device="cpu")
    image, _ = model.prepare(xaihub.load_image(xaihub.sample_photo()).rgb)
    kind = {"rex": Rex, "convad": ConvAD}[options.explainer]
    explainer = kind(baseline=options.baseline, iterations=options.iterations, agreement=1.0)
    total = round(explainer.explain(model, image[None])[0].metadata["forward_passes"])
    rows = batch_rows(model)
    ready = torch.randn(rows, *model.input_size).contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, total, rows):
                model.module(ready[: total - start])

    times: dict[str, list[float]] = {"bare": [], "engine": []}
    for _ in range(options.repeats):
        times["bare"].append(_seconds(bare))
        times["engine"].append(_seconds(lambda: explainer.explain(model, image[None])))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{total} rows in batches of {rows}")
    for name, values in times.items():
        print(f"{name:7} {medians[name]:7.3f} s CPU (from {min(values):.3f} to {max(values):.3f})")
    print(f"ratio   {medians['engine'] / medians['bare']:7.3f}")


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
