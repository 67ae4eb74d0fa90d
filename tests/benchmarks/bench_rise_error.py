"""Passes that RISE needs for a given error: the default estimator against the paper's plain sampling.

    python tests/benchmarks/bench_rise_error.py --photos DIR --count 3

For each photo, both estimators explain the predicted class with `--runs` seeds and `--masks` masks. The error of a map
is measured without a reference: it is the variance over seeds, of the map with its own mean subtracted, summed over
pixels. Variance falls as 1 / passes, so the ratio of the two variances is the ratio of passes to the same error. The
noise is the square root of the variance over the spread of the mean map; "known" is the standard error that the record
of the default estimator reports.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import xaihub

SUFFIXES = (".jpeg", ".jpg", ".png")


def main() -> None:
    """Print one row per photo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="A folder of photos; the sample photo without.")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--masks", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = [Path(xaihub.sample_photo())]
    if options.photos is not None:
        found = [file for file in sorted(options.photos.iterdir()) if file.suffix.lower() in SUFFIXES]
        photos = found[:: max(1, len(found) // options.count)][: options.count]
    model = xaihub.load_model(options.model, device="cpu")
    print("| photo | probability | noise, plain | noise, default | known | passes for the same error |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for photo in photos:
        image, _ = model.prepare(xaihub.load_image(photo).rgb)
        variance, spread, known = {}, {}, 0.0
        for estimator in ("plain", "controlled"):
            given = {"tolerance": 0.0} if estimator == "controlled" else {}
            explainer = xaihub.Hub().get_explainer("rise", masks=options.masks, estimator=estimator, **given)
            runs = [explainer.explain(model, image[None], seed=seed)[0] for seed in range(options.runs)]
            maps = torch.stack([run.values[0].double() for run in runs])
            maps = maps - maps.mean((1, 2), keepdim=True)
            variance[estimator] = float(maps.var(0).mean())
            spread[estimator] = float(maps.mean(0).square().mean()) - variance[estimator] / len(maps)
            if given:
                reported = [run.metadata["details"]["stderr_to_spread"] for run in runs]
                known, probability = sum(reported) / len(reported), runs[0].target.probability
        ratios.append(variance["controlled"] / variance["plain"])
        plain, ours = ((variance[name] / max(spread["controlled"], 1e-12)) ** 0.5 for name in variance)
        print(
            f"| {photo.stem} | {probability:.2f} | {plain:.0%} | {ours:.0%} | {known:.0%} | {ratios[-1]:.2f} |",
            flush=True,
        )
    print(f"geometric mean of the ratios: {float(torch.tensor(ratios).log().mean().exp()):.2f}")


if __name__ == "__main__":
    main()
