"""The small experiments: their images, their figures on cases with a known answer, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from xaihub import ParameterError
from xaihub.cli import cli
from xaihub_shapley.network import ShapleyVision
from xaihub_shapley.objective import ShapleyObjective
from xaihub_shapley.reproduction.experiment import (
    METHODS,
    Agreement,
    Curves,
    agreement,
    curves,
    exact_shapley,
    pointing,
    small_model,
)
from xaihub_shapley.reproduction.images import LabelledImages, Task, make_images


@pytest.mark.parametrize("task", get_args(Task))
def test_images_are_the_same_for_a_seed_and_others_for_another(task: str) -> None:
    one, same, other = (make_images(task, 64, train=True, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.inputs, other.inputs)
    assert one.inputs.shape == (64, 1, 24, 24)
    assert abs(float(make_images(task, 600, train=True, seed=0).inputs.mean())) < 0.1


def test_the_evidence_of_located_digits_is_in_one_or_two_cells() -> None:
    images = make_images("located", 400, train=False, seed=0)
    counts = images.evidence.sum(1)
    assert sorted(counts.unique().tolist()) == [1, 2]
    assert 0.4 < float((counts == 2).float().mean()) < 0.6
    bright = nn.functional.max_pool2d(images.inputs, 8).flatten(1)
    # Glyphs are brighter than any noise, so the brightest pixels are in the evidence.
    assert float(bright[images.evidence].min()) > float(bright[~images.evidence].max())


def test_no_cell_alone_tells_the_label_of_the_exclusive_or() -> None:
    images = make_images("xor", 2000, train=True, seed=0)
    assert bool((images.evidence.sum(1) == 2).all())
    first = images.inputs.view(-1, 3, 8, 3, 8).transpose(2, 3).flatten(1, 2).mean((2, 3))  # brightness of each cell
    labels = images.labels.float()
    for cell in range(9):
        there = images.evidence[:, cell]
        assert abs(float(torch.corrcoef(torch.stack([first[there, cell], labels[there]]))[0, 1])) < 0.15


def test_unknown_images_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"there are no images 'faces' \(use located, digits, xor\)"):
        make_images("faces", 2, train=True, seed=0)  # type: ignore[arg-type]


class _Additive(ShapleyVision):
    """Each patch scores class 1 by its own mean brightness, whatever the other patches hold."""

    def __init__(self) -> None:
        super().__init__(small_model("vit", 2, seed=0).module, size=(1, 24, 24))

    def _patch_scores(self, x: Tensor, attend: Tensor | None) -> Tensor:
        means = nn.functional.adaptive_avg_pool2d(x, 3).flatten(1)
        return torch.stack([torch.zeros_like(means), means], 2)


def _additive() -> tuple[object, LabelledImages]:
    model = small_model("vit", 2, seed=0).around(_Additive().eval())
    inputs = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    evidence = torch.zeros(4, 9, dtype=torch.bool)
    return model, LabelledImages(inputs, torch.ones(4, dtype=torch.long), evidence, 2)


def test_an_additive_network_agrees_with_its_exact_values() -> None:
    model, images = _additive()
    exact = exact_shapley(model.module, images.inputs[0])
    assert torch.allclose(exact, model.module.phi(images.inputs[:1])[0].double(), atol=1e-6)
    found = agreement(model, images, 4)
    assert found.correlation == pytest.approx(1, abs=1e-5)
    assert found.r2 == pytest.approx(1, abs=1e-5)


def test_curves_follow_the_order_of_the_map() -> None:
    model, images = _additive()
    votes = model.module.phi(images.inputs)[..., 1]
    right, wrong = curves(model, images, votes), curves(model, images, -votes)
    gaps = votes.sort(1, descending=True).values.cumsum(1)
    total = gaps[:, -1:]
    kept = torch.cat([total, total - gaps], 1).sigmoid().double()
    areas = (kept[:, :-1] + kept[:, 1:]).sum(1) / 18
    assert right.deletion == pytest.approx(float(areas.mean()), abs=1e-6)
    assert right.aopc == pytest.approx(float((kept[:, :1] - kept[:, 1:-1]).mean()), abs=1e-6)
    assert right.deletion < wrong.deletion
    assert right.insertion > wrong.insertion
    assert right.aopc > wrong.aopc


def test_pointing_counts_hits_and_shares_of_what_is_positive() -> None:
    cells = torch.tensor([[3.0, 1, -5], [1.0, 2, 0]])
    evidence = torch.tensor([[True, False, False], [True, False, True]])
    assert pointing(cells, evidence) == pytest.approx((0.5, (3 / 4 + 1 / 3) / 2))


def test_the_command_prints_and_writes_every_figure(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["reproduce", "shapley", "--data", "located", "--images", "64", "--epochs", "1", "--judged", "2",
                 "-l", "0", "-l", "2", "-o", str(file)]  # fmt: skip
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "0 (baseline)" in result.stdout
    assert "unknown setting" in result.stdout
    records = json.loads(file.read_text())["records"]
    assert [record["method"] for record in records] == [*METHODS, *METHODS]
    # The baseline model is always there, and once.
    assert [record["lambda"] for record in records] == [0.0] * len(METHODS) + [2.0] * len(METHODS)
    assert all(0 <= record["deletion"] <= 1 for record in records if record["deletion"] is not None)


def test_a_trial_run_measures_less_of_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def run(task: str, kind: str, weight: float, **effort: Any) -> dict[str, dict[str, float]]:
        calls.append({"task": task, "kind": kind, "weight": weight, **effort})
        return {"shapley": dict.fromkeys(["accuracy", *Agreement._fields, *Curves._fields], 0.5)}

    def called(*arguments: str) -> list[dict[str, Any]]:
        calls.clear()
        result = CliRunner().invoke(cli, ["reproduce", "shapley", "-q", *arguments])
        assert result.exit_code == 0, result.output
        return [*calls]

    monkeypatch.setattr("xaihub_shapley.reproduction.experiment.run", run)
    whole, quick = called(), called("--quick")
    assert len(quick) < len(whole)
    for found in quick:
        assert {**found, "judged": 20} in whole
        assert found["judged"] == 5
    assert [(call["task"], call["judged"]) for call in called("--quick", "--data", "xor", "--judged", "7")] == [
        ("xor", 7)
    ] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "/nowhere/x.json"], "no such folder"),
        (["--data", "faces"], "'faces' is not one of"),
        (["--lambda", "-1"], "not in the range"),
        (["--votes", "nan"], "votes cannot be nan"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["reproduce", "shapley", *arguments])
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
    assert "Traceback" not in result.output


def test_votes_apply_where_given_but_never_to_the_baseline_model(tmp_path: Path) -> None:
    def fits(*votes: str) -> list[float]:
        file = tmp_path / "figures.json"
        arguments = ["reproduce", "shapley", "--data", "xor", "--images", "64", "--epochs", "1", "--judged", "1"]
        result = CliRunner().invoke(cli, [*arguments, "-l", "1", *votes, "-o", str(file), "-q"])
        assert result.exit_code == 0, result.output
        records = json.loads(file.read_text())["records"]
        return [record["r2"] for record in records if record["method"] == "shapley"]

    before, after = fits(), fits("--votes", "5")
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_objective_and_network_have_the_recipes_patches() -> None:
    network = ShapleyObjective(mask="attention").wrap(small_model("vit", 10, seed=0))
    assert network.cells == ShapleyObjective().wrap(small_model("resnet", 10, seed=0)).cells == 9
