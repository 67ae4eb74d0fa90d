"""A run of a million scores: insert rate, size, leaderboard, resuming; and the memory of a plan of a million images.

    python tests/benchmarks/bench_scale.py [--images 12500] [--folder FOLDER]

Each stage is a process of its own, so that its memory is its own. Times are CPU seconds of that process, and elapsed
ones in brackets; a machine that is busy with other work stretches only the latter.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

EXPLAINERS, METRICS, CURVES = 10, 8, 2
POINTS = 21  # of a curve


@contextmanager
def timed(what: str) -> Iterator[None]:
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    print(f"{what}: {time.process_time() - cpu:.2f} s ({time.perf_counter() - wall:.2f} s)", flush=True)


def memory() -> float:
    """The largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def hub_and_plan(folder: Path):  # noqa: ANN201
    from tests.evaluate.toys import Toys, config
    from xaihub.evaluation.config import Choice
    from xaihub.evaluation.plan import make_plan
    from xaihub.hub import Hub
    from xaihub.hub.host import PluginHost

    host = PluginHost(entry_points=[])
    host.register(Toys(), name="toys")
    hub = Hub(host)
    chosen = config(
        folder / "images", controls=False, maps="none",
        explainers=[Choice("toy_noise", {"width": width}) for width in range(1, EXPLAINERS + 1)],
        metrics=[Choice("toy_drawn", {"label": str(number)}) for number in range(METRICS - 1)] + ["toy_mean"],
    )  # fmt: skip
    return hub, make_plan(hub, chosen)


def images(folder: Path, count: int) -> None:
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        part = folder / "images" / f"n{number % 100:08d}"
        part.mkdir(exist_ok=True)
        pixels = np.frombuffer(number.to_bytes(4, "little") * 12, dtype=np.uint8).reshape(4, 4, 3)
        Image.fromarray(pixels).save(part / f"ILSVRC2012_val_{number:08d}.png")


def insert(folder: Path) -> None:
    """Store what a run would, with an explanation's real record and curves of 21 points for two metrics."""
    import torch

    from xaihub.evaluation.dependence import Dependence
    from xaihub.evaluation.keys import Keys
    from xaihub.evaluation.results import Score
    from xaihub.evaluation.store import RunStore

    hub, plan = hub_and_plan(folder)
    model = hub.load_model("toy")
    keys = Keys(hub, plan.config, model, plan.explainers)
    scores = Dependence(hub, plan).everywhere
    inputs, _ = model.prepare(Image.open(plan.images[0]).convert("RGB"))
    (explanation,) = hub.get_explainer("toy_gradient").explain(model, inputs[None])
    generator = np.random.default_rng(0)
    curve = [np.linspace(0, 1, POINTS).tolist(), torch.rand(POINTS).double().tolist()]
    with RunStore(folder / "run", create=True) as store, store.writing():
        store.set_config(plan.config)
        with timed(f"insert {len(plan.images) * EXPLAINERS * METRICS:,} scores"):
            store.set_images((source, place, plan.images.checksum(place)) for place, source in enumerate(plan.images))
            for place, source in enumerate(plan.images):
                with store.together():
                    for number in range(EXPLAINERS):
                        key = keys.key(number, plan.images.checksum(place), None)
                        store.add_explanation(key, source, explanation, maps="none")
                        for column, (score, value) in enumerate(zip(scores, generator.random(METRICS), strict=True)):
                            with_curve = curve if column < CURVES else None
                            store.add_score(
                                key, Score(score, value=value, curve=with_curve, forward_passes=21, seconds=0.5)
                            )
    size = (folder / "run" / "run.sqlite").stat().st_size
    count = len(plan.images) * EXPLAINERS * METRICS
    print(
        f"size: {size / 2**20:.0f} MiB, {size / count:.0f} bytes per score (with its share of the explanation's record)"
    )
    print(f"projected for 50,000 images x 10 explainers x 8 metrics: {size / count * 4e6 / 2**30:.1f} GiB")


def leaderboard(folder: Path) -> None:
    from xaihub.evaluation.leaderboard import boards
    from xaihub.evaluation.store import RunStore

    hub, _ = hub_and_plan(folder)
    with timed("open, with PRAGMA quick_check"):
        store = RunStore(folder / "run")
    with store, timed("leaderboard"):
        (board,) = boards(store.scores(), hub)
    print(f"{len(board.entries)} entries of {next(iter(board.entries.values())).count:,} images")


def resume(folder: Path) -> None:
    from xaihub.evaluation.run import evaluate
    from xaihub.evaluation.store import RunStore

    with timed("resume with nothing to do, opening and listing the images included"):
        hub, plan = hub_and_plan(folder)
        with RunStore(folder / "run") as store:
            totals = evaluate(hub, plan, store)
    assert (totals.scores, totals.kept) == (0, len(plan.images) * EXPLAINERS * METRICS), totals


def merge(folder: Path) -> None:
    from xaihub.evaluation.merge import merge as join

    with timed("merge the run with itself"):
        join([folder / "run", folder / "run"], folder / "merged")[0].close()


def plan(folder: Path, count: int) -> None:
    """List images in a table, plan a run of them, and look at each; no file is there, so that each fails."""
    from tests.evaluate.toys import config
    from xaihub.evaluation.plan import make_plan
    from xaihub.evaluation.run import evaluate
    from xaihub.evaluation.store import RunStore

    table = folder / f"images{count}.csv"
    with table.open("w") as file:
        file.write("file,class_index,left,top,right,bottom\n")
        for number in range(count):
            name = f"n{number % 1000:08d}/ILSVRC2012_val_{number:08d}.JPEG"
            file.write(f"{name},{number % 3},{number % 50},10,{100 + number % 50},90\n")
    hub, _ = hub_and_plan(folder)
    chosen = make_plan(hub, config(table, explainers=["toy_gradient"], metrics=["toy_truth"], controls=False))
    with timed(f"plan and pass over {count:,} images"), RunStore(folder / f"plan{count}", create=True) as store:
        evaluate(hub, chosen, store)
    print(f"memory: {memory():.0f} MB")


STAGES: dict[str, Callable[[Path], None]] = {
    "insert": insert,
    "leaderboard": leaderboard,
    "resume": resume,
    "merge": merge,
    "plan10k": lambda folder: plan(folder, 10_000),
    "plan1m": lambda folder: plan(folder, 1_000_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_500)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--stage", choices=STAGES, action="append")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        STAGES[given.stage[0]](given.folder)
        print(f"memory: {memory():.0f} MB")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        if not (folder / "images").exists():
            images(folder, given.images)
        for stage in given.stage or STAGES:
            print(f"-- {stage}", flush=True)
            command = [sys.executable, __file__, "--here", "--stage", stage, "--folder", str(folder)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
