"""A few small images, a small network, and objectives that put the loop to the test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training import toys
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.training import run as service
from xaihub.training.config import checked

Train = Callable[..., service.Outcome]


def _hub() -> Hub:
    host = PluginHost(environ={"XAIHUB_LOAD_PLUGINS": ""}).load()
    host.register(toys, name="toys")
    return Hub(host)


@pytest.fixture
def hub() -> Hub:
    """The built-in plugins, and the objectives of `toys`."""
    return _hub()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes of 12 images of 24 by 24 pixels: red ones and blue ones, with noise."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (folder / name).mkdir()
        for index in range(12):
            pixels = random.integers(0, 120, (24, 24, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def _trained_once(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    service.train(_hub(), checked(toys.plan(images, epochs=1)), folder, device="cpu")
    return folder


@pytest.fixture
def finished(_trained_once: Path, tmp_path: Path) -> Path:
    """A copy, as `run`, of what `train(epochs=1)` leaves."""
    return Path(shutil.copytree(_trained_once, tmp_path / "run"))


@pytest.fixture
def train(hub: Hub, images: Path, tmp_path: Path) -> Train:
    """Train a small network on the images into the folder `run`; arguments change the plan."""

    def run(folder: str = "run", *, resume: bool = False, **plan: Any) -> service.Outcome:
        return service.train(hub, checked(toys.plan(images, **plan)), tmp_path / folder, resume=resume, device="cpu")

    return run
