"""CPU seconds of `xaihub explain` at its defaults, start-up included: whole processes, one thread.

    python tests/benchmarks/bench_explain_defaults.py --against COMMIT

With `--against`, another commit of this repository explains the same photo in turn, and the medians of the pairwise
ratios are printed. The backend is eager, which is what the default install has. The first run of each method, which
searches for the fastest batch, is reported separately. With `--long`, the map is compared with one of that many passes.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("convad", "rex", "first_principles")
SEARCHES = ("convad", "rex")
PASSES_PER_SEARCH = 20


def explain(tree: Path, folder: Path, photo: str, method: str, *options: str) -> float:
    """Run the command from a source tree, with a cache of its own, and return its CPU seconds."""
    paths = os.pathsep.join(str(tree / name) for name in (".", "plugins", "zoo"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "xaihub", "explain", photo, "-e", method, "-q", "-o", str(folder / "out")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, *options], check=True, capture_output=True, env=environment, cwd=tree)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="a commit of this repository to compare with")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--photo", help="the sample photo without")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--long", type=int, metavar="PASSES", help="compare the map with a run of so many passes")
    options = parser.parse_args()
    import xaihub

    photo = options.photo or str(xaihub.sample_photo())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        other = work / "other"
        if options.against:
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--detach", str(other), options.against], check=True, capture_output=True)
        try:
            for method in options.methods:
                compare(method, photo, work, other if options.against else None, options)
        finally:
            if options.against:
                subprocess.run([*git, "remove", "--force", str(other)], check=True)


def compare(method: str, photo: str, work: Path, other: Path | None, options: argparse.Namespace) -> None:
    """Run both in turn."""
    ours, theirs = work / "ours", work / "theirs"
    eager = ("--backend", "eager")
    first = explain(ROOT, ours, photo, method, *eager)
    if other:
        explain(other, theirs, photo, method)  # fills the disk's cache
    new, old = [], []
    for _ in range(options.repeats):
        new.append(explain(ROOT, ours, photo, method, *eager))
        if other:
            old.append(explain(other, theirs, photo, method))
    line = f"{method:18} {statistics.median(new):6.2f} s, first run {first:6.2f} s"
    if other:
        ratio = statistics.median(one / two for one, two in zip(new, old, strict=True))
        line += f"; {options.against} {statistics.median(old):6.2f} s, ratio {ratio:.3f}"
    print(line, flush=True)
    if options.long and method in SEARCHES:
        print(
            f"{'':18} correlation with a run of {options.long} passes: {correlation(method, photo, options.long):.3f}"
        )


def correlation(method: str, photo: str, passes: int) -> float:
    """Return the correlation of the map at the defaults with that of a long run of another seed."""
    import torch

    import xaihub

    model = xaihub.load_model("efficientnet_lite0", device="cpu")
    image, _ = model.prepare(xaihub.load_image(photo).rgb)
    long = {"iterations": max(1, passes // PASSES_PER_SEARCH), "agreement": 1.0}
    maps = [
        xaihub.get_explainer(method, **settings).explain(model, image[None], seed=seed)[0].values.flatten()
        for seed, settings in enumerate(({}, long))
    ]
    return float(torch.corrcoef(torch.stack(maps))[0, 1])


if __name__ == "__main__":
    main()
