"""One pass of keep-p masks serves several families and every target; time against the bare batched forward passes.

    python tests/benchmarks/bench_measure_cost.py --masks 1000 --repeats 3

Both sides see as many rows in batches of the same size, on one thread, in turns; the figure is the ratio of the medians
of CPU seconds. The passes are counted at the network itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import xaihub
from xaihub.masking import batch_rows, make_removal
from xaihub_first_principles import mask_families
from xaihub_first_principles.evaluation import evaluate_points
from xaihub_first_principles.method import FirstPrinciples
from xaihub_first_principles.regions import make_regions

PS = (0.3, 0.5, 0.7)


def main() -> None:
    """Print the passes counted, the maps they made, and the ratio of times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--masks", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = xaihub.load_model(options.model, device="cpu")
    image, _ = model.prepare(xaihub.load_image(xaihub.sample_photo()).rgb)
    regions = make_regions("grid:7", model, image, shifts=1, generator=torch.Generator().manual_seed(0))[0]
    ones = torch.ones(regions.features.count, dtype=torch.float64)
    rows = batch_rows(model)
    ready = torch.randn(rows, *model.input_size).contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, options.masks, rows):
                model.module(ready[: options.masks - start])

    def many() -> int:
        points = mask_families.KeepP(budget=options.masks, law="shared").points(ones, torch.Generator().manual_seed(0))
        removals = [make_removal("blur", model, image)]
        outputs = evaluate_points(model, image, points, features=regions.features, removals=removals)
        top = outputs.logits.mean(0).topk(10).indices
        families = [
            *(mask_families.KeepP(p=p, adjust=True) for p in PS),
            mask_families.SignedKeepP(),
            mask_families.RISE(),
            mask_families.Shapley(),
        ]
        maps = [outputs.measure(family, lambda logits: logits.softmax(1)[:, top]).values for family in families]
        return sum(found.shape[1] for found in maps)

    with model.counting() as counts:
        made = many()
    print(f"{counts.forward_passes} forward passes made {made} maps: 6 families or settings of 10 classes each")
    one = FirstPrinciples(budget=options.masks, tolerance=0)
    times: dict[str, list[float]] = {"bare": [], "60 maps": [], "explain": []}
    for _ in range(options.repeats):
        times["bare"].append(seconds(bare))
        times["60 maps"].append(seconds(many))
        times["explain"].append(seconds(lambda: one.explain(model, image[None])))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        ratio = medians[name] / medians["bare"]
        print(f"{name:8} {medians[name]:7.2f} s CPU (from {min(values):.2f} to {max(values):.2f}), ratio {ratio:.3f}")


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
