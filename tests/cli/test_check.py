"""`xaihub explain --check`: a verdict on each map, on a linear model whose weights are its explanation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.networks import SIDE, model
from tests.toy_explainers import explainer, gradient
from xaihub import Explainer, Model, ResolvedTarget, current_generator
from xaihub.api.check import RANDOM_MAPS, Check, Checker
from xaihub.api.explain import explain_many
from xaihub.hub import Hub

from .conftest import Run

CELLS = SIDE // 8
BRIGHT = [3, 12, 22, 29, 40, 47, 53, 58]  # cells that support class 0

OWN = """
import sys
sys.path.insert(0, {root!r})
from tests.cli.test_check import linear
build = linear
"""


def linear() -> Model:
    """One weight per cell and channel: large and positive in the cells that are bright in the image."""
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3 * CELLS**2, 2))
    weights = 0.001 * torch.rand(2, 3, CELLS**2, generator=torch.Generator().manual_seed(0))
    weights[0, :, BRIGHT] += 0.1
    with torch.no_grad():
        network[2].weight.copy_(weights.flatten(1))
        network[2].bias.zero_()
    return model(network)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    cells = np.zeros(CELLS**2, np.uint8)
    cells[BRIGHT] = 255
    path = tmp_path / "cells.png"
    Image.fromarray(cells.reshape(CELLS, CELLS).repeat(8, 0).repeat(8, 1)).convert("RGB").save(path)
    return path


def noisy(one: Explainer, network: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
    found = gradient(one, network, inputs, target)
    return found + 0.05 * torch.randn(found.shape, generator=current_generator())


def flat(_one: Explainer, _model: Model, inputs: Tensor, _target: ResolvedTarget) -> Tensor:
    return torch.ones_like(inputs)


def check(photo: Path, method: Explainer) -> Check:
    (outcome,) = explain_many([linear()], [method], [str(photo)], checker=Checker(Hub()))
    assert outcome.check is not None, outcome.error
    return outcome.check


def test_a_map_that_follows_the_weights_passes(photo: Path) -> None:
    found = check(photo, explainer(gradient))
    assert found.passed, found
    assert len(found.random) == RANDOM_MAPS
    assert found.insertion is not None
    assert found.insertion > max(found.random)
    assert found.seeds is None  # it draws nothing
    assert found.verdict.startswith("passed, which does not prove that the map is right: insertion 0.")


def test_a_map_of_the_image_alone_fails_although_its_insertion_is_high(photo: Path) -> None:
    found = check(photo, explainer(lambda _one, _model, inputs, _target: inputs + 3))
    assert found.insertion is not None
    assert found.insertion > max(found.random)
    assert found.randomised == pytest.approx(1)
    assert not found.passed
    assert found.verdict.startswith("failed, so do not trust this map: it hardly changes when the weights are random")


def test_a_map_that_depends_on_the_seed_fails(photo: Path) -> None:
    found = check(photo, explainer(noisy, stochastic=True))
    assert found.passed is False
    assert "it changes with another seed, so it needs more passes" in found.verdict


def test_what_cannot_be_measured_is_named(photo: Path) -> None:
    found = check(photo, explainer(flat, stochastic=True))
    assert {"randomised", "seeds"} <= set(found.reasons)
    assert "seeds: a map is constant, so it has no ranks to correlate" in found.verdict
    assert Check(insertion=0.5, random=(0.1, 0.2), reasons={"seeds": "why"}).passed is None


def test_the_command_prints_the_verdict_and_records_the_numbers(run: Run, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN.format(root=str(Path(__file__).parents[2])), "utf-8")
    words = ("explain", str(photo), "-m", "own.py:build", "-e", "control_centre", "--check")
    assert "  check failed, so do not trust this map: " in run(*words).stdout
    (record,) = json.loads(run(*words, "--json").stdout)
    assert record["check"]["passed"] is False
    assert record["check"]["randomised"] == pytest.approx(1)
    assert record["check"]["seeds"] is None
