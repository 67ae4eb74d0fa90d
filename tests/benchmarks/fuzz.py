"""Read mutated files of every kind, each kind in a process of its own, and print what happened.

    python tests/benchmarks/fuzz.py [INPUTS] [SEED] [FORMAT]...

By default 60,000 inputs. The last column is the peak memory of the process; a process without any input takes some
700 MB for its libraries.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INPUTS, LEAST = 60_000, 2_000


def one(name: str, count: int, seed: int) -> None:
    """Fuzz one format and print its tally as JSON."""
    import torch

    from tests.fuzzing.driver import fuzz
    from tests.fuzzing.formats import FORMATS

    torch.set_num_threads(1)
    format_ = next(item for item in FORMATS if item.name == name)
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzz(format_, Path(folder), count=count, seed=seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({**vars(tally), "peak": peak}))


def main() -> int:
    """Fuzz all formats; return 1 if anything escaped."""
    from tests.fuzzing.formats import FORMATS

    total = int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS
    seed = sys.argv[2] if len(sys.argv) > 2 else "0"
    names = sys.argv[3:] or [item.name for item in FORMATS]
    count = max(LEAST, total // len(names)) if total >= LEAST else total
    paths = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "zoo")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    print(
        f"{'format':<26}{'inputs':>8}{'accepted':>10}{'refused':>9}{'escaped':>9}{'slowest s':>11}{'peak MB':>9}",
        flush=True,
    )
    failed = False
    for name in names:
        words = [sys.executable, __file__, "--one", name, str(count), seed]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            print(f"{name}: the process ended with {done.returncode}: {done.stderr.strip()[-300:]}")
            failed = True
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        escaped = sum(found["escaped"].values())
        print(
            f"{name:<26}{found['inputs']:>8}{found['accepted']:>10}{found['refused']:>9}{escaped:>9}"
            f"{found['slowest']:>11.2f}{found['peak']:>9}",
            flush=True,
        )
        for text, times in sorted(found["escaped"].items(), key=lambda item: -item[1]):
            print(f"    {times} x {text}")
        failed = failed or bool(escaped) or found["peak"] > 2048
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "zoo")]
        sys.exit(main())
