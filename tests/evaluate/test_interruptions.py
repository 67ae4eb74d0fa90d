"""Runs: nothing lost, nothing twice, whatever interrupts them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluate.toys import config, values
from xaihub.errors import OutputError
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub


def _fork_and_kill(hub: Hub, photos: Path, folder: Path, delay: float) -> None:
    """Run in a child that is killed after `delay` seconds."""
    child = os.fork()
    if child == 0:
        try:
            with RunStore(folder, create=True) as opened:
                evaluate(hub, make_plan(hub, config(photos)), opened)
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _begun(folder: Path) -> RunStore:
    """Open a run that may have been killed before it was one."""
    try:
        return RunStore(folder, create=True)
    except OutputError:
        return RunStore(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)], ids="{} kills".format)
def test_killed_at_random_moments_and_resumed_the_rows_are_those_of_an_undisturbed_run(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path, kills: int
) -> None:
    plan = make_plan(hub, config(photos))
    whole = evaluate(hub, plan, store)
    moments = random.Random(0)
    span = whole.seconds
    for trial in range(20 * kills):
        folder = tmp_path / f"killed{trial}"
        _fork_and_kill(hub, photos, folder, moments.uniform(0, span))
        with _begun(folder) as resumed:
            before = len(resumed.rows())
            totals = evaluate(hub, plan, resumed)
            assert values(resumed) == values(store)
            assert totals.scores == len(store.rows()) - before
            assert resumed._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert not list((folder / "maps").glob("*/.*"))
        # On a busy machine a child is slower, or faster, than the undisturbed run was.
        span *= {0: 1.25, len(store.rows()): 0.8}.get(before, 1)
        kills -= 0 < before < len(store.rows())
        if not kills:
            break
    assert not kills  # so many moments really fell into the work


def test_a_full_disk_stops_the_run_with_one_line_and_resuming_completes_it(
    hub: Hub, photos: Path, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(hub, config(photos))
    evaluate(hub, plan, store)
    real, left = Path.write_bytes, iter(range(3))

    def fill_up(self: Path, data: bytes) -> int:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        return real(self, data)

    with RunStore(tmp_path / "full", create=True) as full:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", fill_up)
            with pytest.raises(OutputError, match="No space left on device"):
                evaluate(hub, plan, full)
        assert 0 < len(full.rows()) < len(store.rows())
        evaluate(hub, plan, full)
        assert values(full) == values(store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, which only some users may make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("this user may not mount file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("left", [0, 8, 16, 32, 64, 96], ids="{}k left".format)
def test_a_disk_that_is_really_full_loses_nothing_and_the_run_is_completed_afterwards(
    hub: Hub, photos: Path, store: RunStore, small_disk: Path, left: int
) -> None:
    plan = make_plan(hub, config(photos))
    evaluate(hub, plan, store)
    with RunStore(small_disk / "run", create=True) as full:
        free = os.statvfs(small_disk)
        (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - 1024 * left))
        with pytest.raises(OutputError, match="No space left|full"):
            evaluate(hub, plan, full)
        before = len(full.rows())
        assert before < len(store.rows())
    (small_disk / "ballast").unlink()
    with RunStore(small_disk / "run") as resumed:
        assert len(resumed.rows()) == before
        totals = evaluate(hub, plan, resumed)
        assert values(resumed) == values(store)
        assert totals.scores == len(store.rows()) - before
        assert resumed._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
