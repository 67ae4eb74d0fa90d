"""An evaluation run against the bare forward and backward passes that it needs.

    python tests/benchmarks/bench_evaluate.py --images 4

Images are crops of the sample photo. CPU seconds of the whole run (reading, explaining, judging, storing) are divided
by those of as many bare rows, forward in the engine's batches and backward one by one, on the same network in the same
process. Crops of one photo have one class, so the grid pointing game refuses them; it counts among the failed scores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

import xaihub
from xaihub.evaluation.config import Choice, Config
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub
from xaihub.masking import batch_rows

EXPLAINERS = [
    "gradcam",
    "layercam",
    "saliency",
    "input_x_gradient",
    Choice("integrated_gradients", {"steps": 16}),
    Choice("occlusion", {"window": 56, "stride": 28}),
    Choice("rise", {"masks": 128}),
    Choice("kernel_shap", {"samples": 100}),
]
METRICS = [
    Choice("insertion", {"steps": 14}),
    Choice("deletion", {"steps": 14}),
    "complexity",
    "mu_fidelity",
    "faithfulness_correlation",
    "sparseness",
    "grid_pointing",
    "cost_forward_passes",
]


def seconds_a_row(model: xaihub.Model, *, rows: int, backward: bool, repeats: int = 12) -> float:
    """Return the mean CPU seconds of one bare row; the first pass only warms up."""
    inputs = torch.randn(rows, *model.input_size).contiguous(memory_format=torch.channels_last)
    for repeat in range(repeats + 1):
        if repeat == 1:
            started = time.process_time()
        if backward:
            leaf = inputs.clone().requires_grad_()
            torch.autograd.grad(model.module(leaf)[:, 0].sum(), leaf)
        else:
            with torch.inference_mode():
                model.module(inputs)
    return (time.process_time() - started) / repeats / rows


def main() -> None:
    """Run once and print the run's CPU seconds, those of the bare passes, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    hub = Hub()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Image.open(xaihub.sample_photo()) as photo:
            for number in range(chosen.images):
                photo.crop((number * 10, 0, 300 + number * 10, 300)).save(folder / f"{number}.png")
        plan = make_plan(hub, Config(images=[name], explainers=list(EXPLAINERS), metrics=list(METRICS)))
        hub.load_model()  # imports are no part of a run
        with RunStore(folder / "run", create=True) as store:
            started = time.process_time()
            totals = evaluate(hub, plan, store)
            spent = time.process_time() - started
    model = hub.load_model()
    forward = seconds_a_row(model, rows=batch_rows(model), backward=False)
    both = seconds_a_row(model, rows=1, backward=True)
    bare = forward * (totals.forward_passes - totals.backward_passes) + both * totals.backward_passes
    print(
        f"{totals.forward_passes} forward passes, {totals.backward_passes} backward passes,"
        f" {totals.scores} scores, {totals.failed} failed"
    )
    print(f"run    {spent:8.2f} s CPU")
    print(
        f"bare   {bare:8.2f} s CPU ({1000 * forward:.1f} ms a forward row, {1000 * both:.1f} ms forward and backward)"
    )
    print(f"ratio  {spent / bare:8.3f}   (target: at most 1.2)")


if __name__ == "__main__":
    main()
