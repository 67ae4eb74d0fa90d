"""Time insertion and deletion against torchcam and Quantus, for the same points of the same maps.

Run it on demand: `OMP_NUM_THREADS=1 python tests/benchmarks/bench_metrics.py --maps 64 --steps 12`. All sides work on
one thread and take turns; the figures are medians of the process's CPU time, and ratios of them. A further side makes
only the batched forward passes that the curves need. The mean areas, insertion and deletion, are printed first: those
of xaihub and torchcam must agree.
With `--road` the imputation is timed against grad-cam's, for one share of hidden pixels at a time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import xaihub
from xaihub_metrics_curves.areas import Deletion, Insertion
from xaihub_metrics_curves.imputation import impute


def main() -> None:
    """Print the CPU time of each side, and how many times ours it takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--maps", type=int, default=4, help="maps of as many flipped and shifted images")
    parser.add_argument("--steps", type=int, default=28, help="a divisor of the number of pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--torchcam-rows", type=int, default=32, help="rows a forward pass for torchcam; 32 is its own")
    parser.add_argument("--channels-last", action="store_true", help="give the peers a model in our memory order")
    parser.add_argument("--road", action="store_true", help="time the imputation instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Quantus warns a few times a step

    model = xaihub.load_model(options.model, device="cpu")
    image, _ = model.prepare(xaihub.load_image(xaihub.sample_photo()).rgb)
    images = torch.stack(
        [image.roll(37 * i, 2).flip(2) if i % 2 else image.roll(37 * i, 2) for i in range(options.maps)]
    )
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(options.maps, 1, 7, 7, generator=generator)
    heats = interpolate(coarse, images.shape[-2:], mode="bicubic")[:, 0]
    if options.road:
        _road(images, heats, options.repeats)
        return
    with torch.inference_mode():
        classes = model(images).argmax(1)
    stock = copy.deepcopy(model.module)
    if not options.channels_last:
        stock = stock.to(memory_format=torch.contiguous_format)

    forward_passes = 2 * options.steps * len(images)  # 2 (steps - 1) between, the whole image, and nothing of it
    ready = torch.randn(8, *image.shape).contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, forward_passes, 8):
                model.module(ready[: forward_passes - start])

    sides: dict[str, Callable[[], object]] = {
        "bare": bare,
        "xaihub": lambda: _ours(model, images, heats, classes, options.steps),
        "torchcam": lambda: _torchcam(stock, images, heats, classes, options.steps, options.torchcam_rows),
    }
    with suppress(ImportError):
        import quantus  # noqa: F401

        sides["quantus"] = lambda: _quantus(stock, images, heats, classes, options.steps)
    for name, work in sides.items():
        print(f"{name:9} {'' if (found := work()) is None else found}")
    _compare(sides, options.repeats)


def _ours(model: xaihub.Model, images: Tensor, heats: Tensor, classes: Tensor, steps: int) -> tuple[float, float]:
    """Return the mean insertion and deletion, as two metrics that know of each other only through the case."""
    logits = model.predict(images)
    totals = [0.0, 0.0]
    for row, (image, heat) in enumerate(zip(images, heats, strict=True)):
        score = xaihub.ClassScore(index=int(classes[row]), name="", logit=0.0, probability=0.0)
        target = xaihub.ResolvedTarget(index=classes[row : row + 1])
        case = xaihub.Case(
            scene=xaihub.Scene(model=model, image=image, logits=logits[row], target=target),
            explanation=xaihub.Explanation(values=heat[None], target=score, predicted=score),
        )
        for which, metric in enumerate((Insertion(steps=steps, baseline="zero"), Deletion(steps=steps))):
            totals[which] += metric.measure(case)[0].value / len(images)
    return totals[0], totals[1]


class _GivenMaps:
    """What torchcam's metric wants of an extractor, around maps that are given."""

    def __init__(self, model: nn.Module, heats: Tensor) -> None:
        self.model, self.heats = model, heats

    def __call__(self, *_args: object, **_options: object) -> list[Tensor]:
        return [self.heats]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    @contextmanager
    def _hooks_off(self) -> Iterator[None]:
        yield


def _torchcam(
    net: nn.Module, images: Tensor, heats: Tensor, classes: Tensor, steps: int, rows: int
) -> tuple[float, float]:
    from torchcam.metrics import DeletionInsertionMetric

    metric = DeletionInsertionMetric(
        _GivenMaps(net, heats), lambda logits: logits.softmax(1), steps=steps, batch_size=rows
    )
    with torch.no_grad():
        metric.update(images, classes.tolist())
    found = metric.summary()
    return found["insertion_auc"], found["deletion_auc"]


def _quantus(net: nn.Module, images: Tensor, heats: Tensor, classes: Tensor, steps: int) -> tuple[float, float]:
    """Flip by the map, and by its negative: the insertion curve read backward passes.

    It orders the values of all channels together, and its "black" is the lowest value of an input, so the areas are not
    the same ones. Its steps have to divide the pixels of one channel and are counted over all of them, so it gets the
    next smaller number of points that this allows: 24 for 28.
    """
    import quantus

    areas = []
    pixels, channels = images[0, 0].numel(), images.shape[1]
    step = next(pixels // n for n in range(max(1, steps // channels), 0, -1) if pixels % n == 0)
    for sign in (-1, 1):
        metric = quantus.PixelFlipping(features_in_step=step, abs=False, normalise=False, disable_warnings=True)
        curves = metric(
            model=net,
            x_batch=images.numpy(),
            y_batch=classes.numpy(),
            a_batch=(sign * heats)[:, None].numpy(),
            softmax=True,
            channel_first=True,
        )
        areas.append(float(np.mean(curves)))
    return areas[0], areas[1]


def _road(images: Tensor, heats: Tensor, repeats: int) -> None:
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    for percent in (10, 20, 50, 80, 90):
        shown = [heat < heat.flatten().quantile(1 - percent / 100) for heat in heats]
        pairs = list(zip(images, shown, strict=True))
        peer = NoisyLinearImputer(noise=0)
        furthest = max(float((impute(i, s) - peer(i, s.float())).abs().max()) for i, s in pairs)
        print(f"{percent} % hidden, furthest apart {furthest:.1e}, {len(pairs)} maps")
        sides: dict[str, Callable[[], object]] = {
            "xaihub": lambda pairs=pairs: [impute(i, s) for i, s in pairs],  # type: ignore[misc]
            "grad-cam": lambda pairs=pairs: [NoisyLinearImputer(noise=0)(i, s.float()) for i, s in pairs],  # type: ignore[misc]
        }
        _compare(sides, repeats)


def _compare(sides: dict[str, Callable[[], object]], repeats: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            times[name].append(_seconds(work))
    ours = statistics.median(times["xaihub"])
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"{name:9} {median:7.3f} s CPU (from {min(values):.3f} to {max(values):.3f}), {median / ours:5.2f} x xaihub"
        )


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
