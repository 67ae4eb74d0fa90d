"""Choosing a measure by a metric: candidates, the search, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.plugins.measure_cases import SIDE, peaked
from xaihub import Case, Hub, Metric, MetricRefused, Model, ParameterError, XaihubError
from xaihub_first_principles import command, mask_families
from xaihub_first_principles.candidates import Smoothed, propose
from xaihub_first_principles.learned_measures import read_measure
from xaihub_first_principles.method import FirstPrinciples
from xaihub_first_principles.optimise import Found, Settings, optimise_measure


class _Centre(Metric):
    """The map's value in the middle minus its mean, over its spread: best for maps that find the evidence."""

    def score(self, case: Case) -> float:
        heat = case.heat
        if float(heat.std()) == 0:
            raise MetricRefused("a constant map")
        return float((heat[4:8, 4:8].mean() - heat.mean()) / heat.std())


def _images(folder: Path, count: int) -> list[str]:
    files = []
    for number in range(count):
        noise = torch.randint(100, 255, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.byte().numpy()).save(folder / f"{number}.png")
        files.append(str(folder / f"{number}.png"))
    return files


# The search.


@pytest.mark.parametrize("choose", ["p", "sizes", "weights"])
def test_candidates_start_at_keep_p_spread_out_and_then_close_in(choose: Any) -> None:
    known: list[tuple[Any, float]] = []
    for candidate in propose(choose, 20, 0, known):
        known.append((candidate, -abs(sum(candidate.parameters.values()) - 1.1)))
    assert known[0][0] == mask_families.Mixture()
    assert len({candidate for candidate, _ in known}) == 20
    early, late = (sum(score for _, score in part) / len(part) for part in (known[1:10], known[15:]))
    assert late >= early - 1e-9
    again: list[tuple[Any, float]] = []
    for candidate in propose(choose, 20, 0, again):
        again.append((candidate, -abs(sum(candidate.parameters.values()) - 1.1)))
    assert again == known


def test_candidates_stay_within_their_ranges() -> None:
    known: list[tuple[Any, float]] = []
    for candidate in propose("weights", 30, 1, known):
        known.append((candidate, float(len(known))))
    assert all(isinstance(candidate, Smoothed) for candidate, _ in known[1:])
    assert all(0.3 <= c.length <= 3 and 0.01 <= c.noise <= 10 for c, _ in known[1:])
    sizes: list[tuple[Any, float]] = []
    for candidate in propose("sizes", 30, 1, sizes):
        sizes.append((candidate, 0.0))
        assert sum(candidate.thetas) == pytest.approx(1, abs=1e-12)
        assert min(candidate.thetas) >= 0


def _optimise(folder: Path, choose: Any, count: int = 8, **changes: Any) -> Found:
    values = {"features": "grid:3", "baseline": "black", "output": "logit", "budget": 60, "trials": 8, "seed": 3}
    settings = Settings(choose=choose, **{**values, **changes})
    return optimise_measure(peaked(), _images(folder, count), {"centre": (_Centre(), 1.0)}, settings)


@pytest.mark.parametrize("choose", ["p", "sizes", "weights"])
def test_the_search_keeps_to_its_images_and_never_ends_below_its_start(tmp_path: Path, choose: Any) -> None:
    found = _optimise(tmp_path, choose)
    header = found.measure.header
    assert header.images == (4, 2, 2)
    assert header.gain[1] >= 0
    assert header.gain[2] == pytest.approx(float((found.tests[:, 1] - found.tests[:, 0]).mean()))
    assert header.interval is not None
    assert header.interval[0] <= header.gain[2] <= header.interval[1]
    assert len(found.tried) == 8
    assert found.tried[0][0] == {"p": 0.5}
    assert _optimise(tmp_path, choose).measure.digest == found.measure.digest


@pytest.mark.parametrize("block", [1, 2])
def test_what_was_chosen_is_what_the_explainer_computes(tmp_path: Path, block: int) -> None:
    found = _optimise(tmp_path, "weights", block=block)
    file = found.measure.save(tmp_path / "my.safetensors")
    model = peaked()
    image, _ = model.prepare(Image.open(tmp_path / "0.png"))
    first = FirstPrinciples(measure=str(file), budget=60).explain(model, image[None])[0]
    assert float(_Centre().score(Case(scene=None, explanation=first))) > 0  # type: ignore[arg-type]
    assert first.metadata["forward_passes"] <= 60


def test_a_noisier_estimate_is_given_up_for_a_better_one(tmp_path: Path) -> None:
    # With 24 masks of 9 regions keep-p is noisy, and neighbouring regions of this evidence are not alike.
    found = optimise_measure(
        peaked(),
        _images(tmp_path, 24),
        {"centre": (_Centre(), 1.0)},
        Settings(choose="p", features="grid:3", baseline="black", output="logit", budget=24, trials=12),
    )
    assert found.measure.header.gain[0] >= 0
    assert found.measure.header.gain[2] is not None


def test_where_nothing_is_better_keep_p_is_saved_on_the_masks_that_were_judged(tmp_path: Path) -> None:
    found = _optimise(tmp_path, "weights", block=2, trials=1, features="grid:4")
    header, tensors = found.measure.header, found.measure.tensors
    assert (header.kind, header.gain) == ("weights", (0, 0, 0))
    assert tensors["masks"].shape == tensors["weights"].shape == (60, 16)
    game = torch.randn(60, generator=torch.Generator().manual_seed(0)).double()
    adjusted = mask_families.SignedKeepP(adjust=True)
    design = mask_families.fixed_masks(tensors["masks"].float(), copies=1)
    points = mask_families.design_points(torch.ones(16).double(), design, torch.zeros(1, 16).double())
    assert torch.allclose(tensors["weights"].T @ game, adjusted.weights(points).T @ game, atol=1e-10)


def test_images_that_cannot_be_used_are_skipped_by_name(tmp_path: Path) -> None:
    files = [*_images(tmp_path, 7), str(tmp_path / "broken.png")]
    (tmp_path / "broken.png").write_bytes(b"nothing")
    settings = Settings(choose="p", features="grid:3", baseline="black", budget=60, trials=2)
    found = optimise_measure(peaked(), files, {"centre": (_Centre(), 1.0)}, settings)
    assert list(found.skipped) == [str(tmp_path / "broken.png")]
    assert sum(found.measure.header.images) == 7


def test_too_few_images_and_regions_that_do_not_suit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="1 images are too few"):
        _optimise(tmp_path, "p", count=1)
    with pytest.raises(ParameterError, match="the same in every image, not 'superpixels:9'"):
        optimise_measure(peaked(), [], {}, Settings(features="superpixels:9"))


# The command.


class _SmallHub(Hub):
    def load_model(self, name: str = "", /, **options: Any) -> Model:
        return peaked()


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(command.optimise_measure, arguments, obj=SimpleNamespace(hub=_SmallHub()))


def test_the_command_writes_a_measure_that_explains(tmp_path: Path) -> None:
    _images(tmp_path, 8)
    file = tmp_path / "out" / "my.safetensors"
    result = _run(
        str(tmp_path), "-o", str(file), "--budget", "50", "--trials", "3", "--features", "grid:3",
        "-p", "insertion.steps=4", "-p", "deletion.steps=4", "--json", "-q",
    )  # fmt: skip
    assert result.exception is None, result.output
    record = json.loads(result.stdout)
    assert record["header"]["images"] == [4, 2, 2]
    assert record["header"]["metrics"] == {"insertion": 1, "deletion": -1}
    assert read_measure(file).header.model == "peaked"
    plain = _run(str(tmp_path), "-o", str(file), "--budget", "50", "--trials", "2", "--features", "grid:3", "--logit")
    assert "insertion - deletion, keep-p at 0.5: " in plain.stdout
    assert "gain on 2 unused images " in plain.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([".", "-o", "a.safetensors", "-k", "pointing_game"], "needs more than one image and its map"),
        (["none/", "-o", "a.safetensors"], "no such image or folder: 'none/'"),
        ([".", "-o", "a.pt"], "must end in .safetensors"),
        ([".", "-o", "a.safetensors", "-k", "nothing"], "nothing"),
        ([".", "-o", "a.safetensors", "-k", "cost_forward_passes", "-p", "x=1"], "is not METRIC.NAME=VALUE"),
        ([".", "-o", "LICENSE/a.safetensors"], "cannot write 'LICENSE/a.safetensors'"),
    ],
)
def test_the_command_refuses_what_cannot_work_before_any_work(arguments: list[str], reason: str) -> None:
    result = _run(*arguments)
    assert result.exit_code != 0
    assert reason in result.output + str(result.exception)
    assert isinstance(result.exception, (XaihubError, SystemExit))
