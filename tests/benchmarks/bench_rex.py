"""Compare the causal search with rex-xai in one run: same network, photo, iterations, box rules and confidence.

Run it where rex-xai 0.4.1 is installed: `python tests/benchmarks/bench_rex.py --iterations 20 --confidence 0.5`. It
prints the area of the set that each finds, its confidence in a forward pass of its own, times, rows, and our time over
that of the bare batched forward passes. Times are CPU time of one thread, the wall time of an idle machine. Ours
grows the set by cells of `--cell` pixels per side and removes cells again, in at most `--shrink` forward passes.
`--deactivate` compares `convad` with rex-xai over the deactivated network.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import xaihub
from xaihub.masking import batch_rows
from xaihub_convad.deactivation import MaskedNetwork
from xaihub_convad.explainers import ConvAD, Rex


def main() -> None:
    """Print one line a tool and seed, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--photos", nargs="*", help="images; the sample photo without")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--confidence", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64, help="rows of rex-xai's extraction; its search takes 14")
    parser.add_argument("--channels-last", action="store_true", help="give rex-xai our memory order as well")
    parser.add_argument("--deactivate", action="store_true")
    parser.add_argument("--cell", type=int, default=32)
    parser.add_argument("--shrink", type=int, default=100, help="forward passes of our last step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.CRITICAL)
    try:
        import rex_xai  # noqa: F401
    except ImportError:
        print("skipped: rex-xai is not installed")
        return
    model = xaihub.load_model(options.model, device="cpu")
    ratios: dict[str, list[float]] = {"search and extraction": [], "areas": [], "over bare forward passes": []}
    for photo in options.photos or [xaihub.sample_photo()]:
        image, _ = model.prepare(xaihub.load_image(photo).rgb)
        for seed in range(options.seeds):
            theirs, ours = _theirs(model, image, options, seed), _ours(model, image, options, seed)
            bare = _bare(model, ours["rows"])
            ratios["search and extraction"].append(ours["seconds"] / theirs["seconds"])
            ratios["areas"].append(ours["area"] / theirs["area"])
            ratios["over bare forward passes"].append(ours["seconds"] / bare)
            for name, found in (("rex-xai", theirs), ("xaihub", ours)):
                print(
                    f"{name:8} seed {seed}: area {found['area']:.4f}, confidence {found['confidence']:.3f} of"
                    f" {found['whole']:.3f}, {found['seconds']:.1f} s, {found['rows']} rows",
                    flush=True,
                )
            print(f"bare forward passes of as many rows as xaihub: {bare:.1f} s", flush=True)
    for name, values in ratios.items():
        print(f"ratio of {name}: median {statistics.median(values):.3f}, from {min(values):.3f} to {max(values):.3f}")


def _theirs(model: xaihub.Model, image: Tensor, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Search and extract with rex-xai at its own defaults."""
    from rex_xai.explanation.explanation import Explanation
    from rex_xai.explanation.rex import calculate_responsibility, predict_target
    from rex_xai.input.config import CausalArgs
    from rex_xai.input.input_data import Data
    from rex_xai.responsibility.prediction import default_prediction_function

    order = torch.channels_last if options.channels_last else torch.contiguous_format
    network = copy.deepcopy(model.module).to(memory_format=order)
    counted = _Counted(MaskedNetwork(network) if options.deactivate else network, order)
    ask = default_prediction_function(counted)
    args = CausalArgs()
    args.iters, args.seed, args.batch_size = options.iterations, seed, options.batch
    args.minimum_confidence_threshold, args.progress_bar = options.confidence, False
    args.mask_value = "none" if options.deactivate else 0
    data = Data(None, ["N", *image.shape], "cpu", mode="RGB")
    data.data = image[None]
    data.set_mask_value(args.mask_value)
    started = time.process_time()
    data.target = predict_target(data, args, ask)
    maps, stats = calculate_responsibility(data, args, ask)
    found = Explanation(maps, ask, data, args, stats)
    found.extract()
    seconds = time.process_time() - started
    mask = found.sufficiency_mask.reshape(-1, *image.shape)[0, 0]  # type: ignore[union-attr]
    return {
        "seconds": seconds,
        "rows": counted.count,
        "area": float(mask.double().mean()),
        "confidence": found.sufficiency_confidence,
        "whole": data.target.confidence,
    }


def _ours(model: xaihub.Model, image: Tensor, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Search and extract with ReX's cuts and boxes, and about as many splits per search."""
    explainer: Callable[..., Any] = ConvAD if options.deactivate else Rex
    made = explainer(
        iterations=options.iterations,
        agreement=1.0,
        confidence=options.confidence,
        refinements=6,
        cell=options.cell,
        shrink=options.shrink,
    )
    started = time.process_time()
    found = made.explain(model, image[None], seed=seed)[0]
    seconds = time.process_time() - started
    (one,) = found.sets
    return {
        "seconds": seconds,
        "rows": round(found.metadata["forward_passes"]),
        "area": one.area,
        "confidence": one.score,
        "whole": found.metadata["details"]["confidence"],
    }


def _bare(model: xaihub.Model, rows: int) -> float:
    size = batch_rows(model)
    ready = torch.randn(size, *model.input_size).contiguous(memory_format=torch.channels_last)
    started = time.process_time()
    with torch.inference_mode():
        for start in range(0, rows, size):
            model.module(ready[: rows - start])
    return time.process_time() - started


class _Counted(nn.Module):
    """A network that counts its rows, which it gets in one memory order."""

    def __init__(self, network: nn.Module, order: torch.memory_format) -> None:
        super().__init__()
        self.network, self.order, self.count = network, order, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.count += len(inputs)
        outputs: Tensor = self.network(inputs.contiguous(memory_format=self.order))
        return outputs


if __name__ == "__main__":
    main()
