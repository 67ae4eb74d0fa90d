"""Time occlusion, KernelSHAP and RISE against the bare batched forward passes they need, and against captum itself.

Run it on demand: `python tests/benchmarks/bench_perturbation.py --repeats 5`. Every side sees the same images, rows a
pass and thread count, in turns; figures are medians of CPU time. "Bare" runs as many rows as the method needs through
the network, ready-made, in channels-last order under inference mode. captum is given the network as it comes, and
the same images, windows, segments and number of samples; of several rows a pass its best is taken.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import captum.attr
import torch

import xaihub
from xaihub.masking import baseline_image, make_features


def main() -> None:
    """Print a table of CPU times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--rows", type=int, default=8, help="rows a forward pass, here and bare")
    parser.add_argument(
        "--captum-rows", type=int, nargs="+", default=[1, 4, 8, 32], help="rows a pass tried for captum"
    )
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--samples", type=int, default=300, help="coalitions and masks")
    parser.add_argument("--methods", nargs="+", default=["occlusion", "kernel_shap", "rise"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    model = xaihub.load_model(options.model, device="cpu", runtime=xaihub.Runtime(batch_size=options.rows))
    image = model.prepare(xaihub.load_image(xaihub.sample_photo()).rgb)[0].unsqueeze(0)
    index = int(model.predict(image).argmax())
    grey = baseline_image("grey", model, image[0]).unsqueeze(0)
    features = make_features("superpixels:50", model, image[0])
    segments = features.spread(torch.arange(features.count))[None, None]
    network = model.module.to(memory_format=torch.channels_last)
    ready = torch.randn(options.rows, *model.input_size).contiguous(memory_format=torch.channels_last)

    def bare(rows: int) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                for start in range(0, rows, options.rows):
                    network(ready[: rows - start])

        return run

    def ours(explainer: xaihub.Explainer) -> Callable[[], xaihub.Explanation]:
        return lambda: explainer.explain(model, image, index)[0]

    def occlusion(rows: int) -> Callable[[], object]:
        channels = model.input_size[0]
        return lambda: captum.attr.Occlusion(network).attribute(
            image,
            (channels, options.window, options.window),
            strides=(channels, options.stride, options.stride),
            baselines=grey,
            target=index,
            perturbations_per_eval=rows,
        )

    def kernel_shap(rows: int) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return captum.attr.KernelShap(network).attribute(
                    image,
                    baselines=grey,
                    target=index,
                    feature_mask=segments,
                    n_samples=options.samples,
                    perturbations_per_eval=rows,
                )

        return run

    methods = {
        "occlusion": (ours(xaihub.get_explainer("occlusion", window=options.window, stride=options.stride)), occlusion),
        "kernel_shap": (ours(xaihub.get_explainer("kernel_shap", samples=options.samples)), kernel_shap),
        "rise": (ours(xaihub.get_explainer("rise", masks=options.samples)), None),
    }
    print(f"{'':12}{'rows':>6}{'bare':>9}{'xaihub':>9}{'ratio':>7}{'captum':>9}{'rows':>6}{'captum / xaihub':>17}")
    for name in options.methods:
        run, peer = methods[name]
        rows = round(run().metadata["forward_passes"]) + 1  # explain itself asks once for the class
        best = min(options.captum_rows, key=lambda size: _seconds(peer(size))) if peer else 0
        sides = {"bare": bare(rows), "xaihub": run, **({"captum": peer(best)} if peer else {})}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side, call in sides.items():
                times[side].append(_seconds(call))
        median = {side: statistics.median(seconds) for side, seconds in times.items()}
        ratio = median["xaihub"] / median["bare"]
        line = f"{name:12}{rows:6}{median['bare']:9.3f}{median['xaihub']:9.3f}{ratio:7.3f}"
        if peer:
            line += f"{median['captum']:9.3f}{best:6}{median['captum'] / median['xaihub']:17.3f}"
        print(line, flush=True)


def _seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
