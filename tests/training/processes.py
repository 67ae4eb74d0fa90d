"""Runs training in processes of their own: `python -m tests.training.processes FOLDER IMAGES KILLS`.

The libraries are imported once; each attempt is a fork of this process.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - imported before the forks
import timm  # noqa: F401
import torch

from tests.training import toys
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.training import result, setup  # noqa: F401
from xaihub.training.config import checked
from xaihub.training.loop.checkpoint import Checkpoint
from xaihub.training.run import train


def work(images: Path, folder: Path) -> None:
    """Train, or go on where the last attempt stopped."""
    host = PluginHost(environ={"XAIHUB_LOAD_PLUGINS": ""}).load()
    host.register(toys, name="toys")
    plan = toys.plan(images, objective="masked", epochs=4, ema=0.8, accumulate=2, batch_size=4, save_every=0)
    train(Hub(host), checked(plan), folder, resume=folder.exists(), device="cpu")


def forked(job: Callable[[], None]) -> int:
    """Run `job` in a child process and return its id."""
    child = os.fork()
    if child:
        return child
    try:
        job()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def waited(child: int) -> int:
    """Return the exit code of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def place(folder: Path) -> int:
    """Return the number of steps that a run's checkpoint has done."""
    file = folder / "checkpoint.safetensors"
    return int(Checkpoint.load(file).state["progress"]["step"]) if file.exists() else 0


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run's epochs."""
    found: list[dict[str, Any]] = Checkpoint.load(folder / "checkpoint.safetensors").state["progress"]["history"]
    return found


def killed(folder: Path, images: Path, wanted: int) -> None:
    """Train undisturbed; then again, killed `wanted` times at random moments."""
    started = time.monotonic()
    assert waited(forked(lambda: work(images, folder / "undisturbed"))) == 0
    whole = time.monotonic() - started
    steps = sum(record["seconds"] for record in history(folder / "undisturbed"))
    draw = random.Random(0)
    kills = 0
    while kills < wanted:
        child = forked(lambda: work(images, folder / "killed"))
        # Each attempt repeats the start-up, in which it may be killed as well, and gets a part of the way.
        time.sleep(draw.uniform(0, whole - steps + 1.2 * steps / wanted))
        os.kill(child, signal.SIGKILL)
        ended = waited(child)
        kills += ended == -signal.SIGKILL
        if ended == 0:  # the machine was faster this time
            shutil.rmtree(folder / "killed")
    done = [place(folder / name) for name in ("killed", "undisturbed")]
    sys.stdout.write(f"killed last after {done[0]} of {done[1]} steps\n")
    assert waited(forked(lambda: work(images, folder / "killed"))) == 0


def shared(folder: Path, images: Path) -> None:
    """Train by one process, then by two."""
    plan = toys.plan(images, model="test_vit", size=None, optimizer="sgd", epochs=1, batch_size=7, val=0.3)

    def rank(number: int) -> None:
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
        os.environ.update(MASTER_PORT=str(20000 + os.getppid() % 20000), ACCELERATE_USE_CPU="true")
        train(Hub(), checked(plan), folder / "two", device="cpu")

    def alone() -> None:
        train(Hub(), checked(plan), folder / "one", device="cpu")

    assert waited(forked(alone)) == 0
    children = [forked(lambda number=number: rank(number)) for number in range(2)]  # type: ignore[misc]
    assert [waited(child) for child in children] == [0, 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    killed(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    shared(Path(sys.argv[1]), Path(sys.argv[2]))
