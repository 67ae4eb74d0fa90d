"""Engines compared: throughput without start-up, equality of the rows; and the cost model against measured shards.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_engines.py [--images FOLDER] [--count 24] [--only local ray cost]

Throughput needs an idle machine with two cores: the elapsed time from the first image of every worker to the last
image. The cost model is checked in CPU seconds: `--dry-run` gives the passes per image, one shard the seconds per pass,
and the others are predicted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from xaihub import sample_photo
from xaihub.evaluation.config import Choice, Config
from xaihub.evaluation.engine import make_engine
from xaihub.evaluation.estimate import estimate
from xaihub.evaluation.plan import load_models, make_plan
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost

SHARDS = 4


def crops(folder: Path, count: int) -> Path:
    folder.mkdir()
    with Image.open(sample_photo()) as photo:
        for number in range(count):
            left, top = 9 * number % 200, 5 * number % 80
            photo.crop((left, top, left + 220, top + 220)).save(folder / f"{number:03d}.png")
    return folder


def config(images: Path, count: int, **changes: object) -> Config:
    explainers = ["gradcam", Choice("rise", {"masks": 64})]
    metrics = [Choice("insertion", {"steps": 10}), "sparseness"]
    return Config(
        images=[str(images)], explainers=explainers, metrics=metrics, controls=False, device="cpu", limit=count,
        **changes,
    )  # fmt: skip


def throughput(hub: Hub, folder: Path, chosen: Config, engine: str, jobs: int) -> tuple[float, list[object]]:
    """Return images per second after every worker has started, and the rows."""
    plan = make_plan(hub, chosen)
    reports: list[tuple[float, int]] = []
    with RunStore(folder / f"{engine}{jobs}", create=True) as store:
        evaluate(
            hub, plan, store, engine=make_engine(hub, engine, jobs=jobs, device="cpu"),
            watch=lambda _step, done, _total: reports.append((time.perf_counter(), done)),
        )  # fmt: skip
        rows = [
            (row.image, row.explainer, row.metric, row.value, row.curve, row.forward_passes) for row in store.rows()
        ]
    per_image = len(plan.explainers)
    begin, before = next(report for report in reports if report[1] >= jobs * per_image)
    end, after = next(report for report in reports if report[1] == reports[-1][1])
    return (after - before) / per_image / (end - begin), rows


def cost(hub: Hub, folder: Path, images: Path, count: int) -> None:
    plan = make_plan(hub, config(images, count))
    models = load_models(hub, plan)
    with RunStore(folder / "trial", create=True) as trial:
        expected = estimate(hub, plan, trial, models)
    per_image = (expected.forward_passes + expected.backward_passes) / expected.images
    print(f"dry run: {per_image:.0f} passes per image, {expected.record_bytes / count / 1024:.1f} KiB of records,"
          f" {expected.map_bytes / count / 1024:.1f} KiB of maps")  # fmt: skip
    rate = 0.0
    for number in range(1, SHARDS + 1):
        shard = make_plan(hub, config(images, count, shard=f"{number}/{SHARDS}"))
        begin = time.process_time()
        with RunStore(folder / f"shard{number}", create=True) as store:
            totals = evaluate(hub, shard, store, models)
            records, maps = store.size()
        spent = time.process_time() - begin
        done = totals.explanations // len(plan.explainers)
        passes = totals.forward_passes + totals.backward_passes
        line = f"shard {number}: {done} images, {passes / done:.0f} passes per image, {spent:.1f} CPU seconds"
        if rate:
            predicted = done * per_image * rate
            line += f", {predicted:.1f} predicted ({predicted / spent - 1:+.1%})"
        else:
            rate = spent / passes
        print(f"{line}; {records / done / 1024:.1f} KiB of records, {maps / done / 1024:.1f} KiB of maps", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="Folder with images; default: crops of the sample photo.")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--only", nargs="+", choices=("local", "ray", "cost"), default=["local", "ray", "cost"])
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    hub = Hub()
    if "ray" not in hub.engines:  # a source tree that was not installed again
        import xaihub_ray

        hub = Hub(PluginHost().load())
        hub.host.register(xaihub_ray, name="ray")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = given.images or crops(folder / "images", given.count)
        chosen = config(images, given.count)
        if {"local", "ray"} & set(given.only):
            alone, expected = throughput(hub, folder, chosen, "local", 1)
            print(f"one process, one thread: {alone:.3f} images per second", flush=True)
            for engine in [one for one in ("local", "ray") if one in given.only]:
                rate, rows = throughput(hub, folder, chosen, engine, 2)
                same = "the same rows" if rows == expected else "OTHER ROWS"
                print(f"{engine}, two workers: {rate:.3f} images per second, {rate / alone:.2f} x; {same}", flush=True)
        if "cost" in given.only:
            cost(hub, folder, images, given.count)


if __name__ == "__main__":
    main()
