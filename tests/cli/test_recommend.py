"""`xaihub recommend`: which explainers are valid, what they cost, and what was measured for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from docs import measured
from tests.networks import Detached, Net
from xaihub import Explainer, Hub, Model, Preprocessing, ResolvedTarget, XaihubError
from xaihub.api import recommend as module
from xaihub.api.measured import Measurement, Measurements, measurements
from xaihub.api.recommend import Recommendation, parse_time, recommend
from xaihub.api.trials import MOST_PASSES, attempt, trial_input
from xaihub.errors import ParameterError
from xaihub.plugin_tools.onefile import register_file
from xaihub.testing import tiny_cnn, tiny_vit

from .conftest import Run

# Of the methods with many passes, whose number does not decide whether they refuse.
SMALL = {"scorecam": {"channels": 8}, "integrated_gradients": {"steps": 4}, "smoothgrad": {"samples": 4}}
PAGE = Path(measured.__file__).parent / "how-to" / "choose-an-explainer.md"
RUDE = """
import xaihub

class Rude(xaihub.Explainer):
    '''Ends the process.'''

    def attribute(self, model, inputs, target):
        raise SystemExit(3)
"""
MODEL = "from xaihub.testing import tiny_cnn\ndef build(): return tiny_cnn()\n"


@pytest.fixture(scope="module")
def hub() -> Hub:
    return Hub()


def model_of(module: torch.nn.Module, channels: int = 3) -> Model:
    size = (channels, 32, 32)
    steps = Preprocessing(spatial=[], size=size, mean=(0,) * channels, std=(1,) * channels, description={"size": 32})
    return Model(module, name="small", preprocessing=steps)


def by_name(found: Recommendation) -> dict[str, module.Candidate]:
    return {one.name: one for one in found.candidates}


@pytest.mark.parametrize("build", [tiny_cnn, tiny_vit])
def test_a_trial_says_what_a_whole_explanation_says(hub: Hub, build: type) -> None:
    model = build()
    inputs, logits = trial_input(model)
    said, true = {}, {}
    for spec in hub.explainers:
        if spec.needs == ("black-box",):
            continue
        explainer = hub.get_explainer(spec.name, **SMALL.get(spec.name, {}))
        said[spec.name] = attempt(hub.get_explainer(spec.name), spec, model, inputs, logits).verdict in (
            "works",
            "warns",
        )
        try:
            explainer.explain(model, inputs, logits=logits)
            true[spec.name] = True
        except XaihubError:
            true[spec.name] = False

    assert said == true
    assert not all(true.values())


def test_a_trial_is_short_and_leaves_the_model_as_it_was(hub: Hub) -> None:
    model = tiny_cnn()
    inputs, logits = trial_input(model)
    weights, runtime = model.weights_hash, model.runtime
    for spec in hub.explainers:
        explainer = hub.get_explainer(spec.name)
        before = explainer.parameters
        with model.counting() as counts:
            attempt(explainer, spec, model, inputs, logits)
        assert counts.forward_passes <= MOST_PASSES, spec.name
        assert explainer.parameters == before

    assert model.runtime is runtime
    assert model.weights_hash == weights
    assert not model.module._forward_pre_hooks


def test_without_gradients_only_what_needs_none_is_valid(hub: Hub) -> None:
    found = by_name(recommend(hub, model_of(Detached())))

    assert found["rise"].valid
    assert found["saliency"].trial.verdict == "refused"
    assert "cannot be differentiated" in found["saliency"].trial.reason
    assert not any(one.valid for one in found.values() if "gradients" in one.needs)


def test_inputs_that_are_no_photo_are_tried_with_noise(hub: Hub) -> None:
    network = Net()
    network.body[0] = torch.nn.Conv2d(5, 16, 3, 2, 1)

    assert by_name(recommend(hub, model_of(network, channels=5)))["saliency"].valid


class Rude(Explainer):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        raise RuntimeError("no\nsuch  thing")


def test_an_error_of_a_method_is_a_verdict(hub: Hub) -> None:
    model, spec = tiny_cnn(), hub.explainers.get("saliency")
    trial = attempt(Rude(), spec, model, *trial_input(model))

    assert (trial.verdict, trial.reason) == ("failed", "RuntimeError: no such thing")


def test_a_third_party_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "rude.py"
    file.write_text(RUDE)
    own = Hub()
    register_file(own.host, file)
    found = by_name(recommend(own, tiny_cnn()))

    assert found["rude"].trial.verdict == "untried"


def test_seconds_are_passes_at_the_measured_speed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "speed", lambda _model: 50.0)
    found = by_name(recommend(hub, tiny_cnn()))

    # A backward pass counts as two.
    assert (found["saliency"].passes, found["saliency"].seconds) == (3, 3 / 50)
    assert (found["rise"].passes, found["rise"].seconds, found["rise"].at_most) == (1000, 20, True)
    assert found["integrated_gradients"].seconds == 152 / 50
    assert found["rex"].passes == 480  # declared, because its budget is open
    assert found["occlusion"].seconds is None
    assert all(one.fits is None and one.affordable is None for one in found.values())


@pytest.mark.parametrize(("speed", "first"), [(1000.0, "best"), (0.5, "cheap")])
def test_methods_that_fit_come_first(hub: Hub, monkeypatch: pytest.MonkeyPatch, speed: float, first: str) -> None:
    monkeypatch.setattr(module, "speed", lambda _model: speed)
    found = recommend(hub, tiny_cnn(), seconds=5, options=["-m", "a model"])
    valid = [one for one in found.candidates if one.valid]
    ranks = measurements().ranks()

    assert [one.fits is False for one in valid] == sorted(one.fits is False for one in valid)
    assert all(one.valid for one in found.candidates[: len(valid)])
    if first == "best":
        assert valid[0].name == min((one.name for one in valid if one.name in ranks), key=lambda name: ranks[name])
        assert found.commands[0] == f"xaihub explain IMAGE -m 'a model' -e {valid[0].name} --budget 5s"
    else:  # 2.5 forward passes: less than gradcam needs
        assert by_name(found)["gradcam"].fits is False
        assert by_name(found)["rise"].affordable == 2
    assert len(found.commands) == 2
    second = next(one for one in valid if f"-e {one.name}" in found.commands[1].partition(" --budget")[0])
    assert set(second.needs) != set(valid[0].needs)


def test_what_a_control_beats_counts_as_not_measured(hub: Hub) -> None:
    def row(name: str, metric: str, mean: float) -> Measurement:
        higher = metric == "up"
        return Measurement(
            explainer=name, metric=metric, higher_is_better=higher, mean=mean, low=mean, high=mean, count=1, best=False
        )

    rows = [("a", 3, 1), ("b", 1, 3), ("c", 3, 3), ("control_x", 2, 2)]
    both = [row(name, *pair) for name, up, down in rows for pair in (("up", up), ("down", down))]
    table = Measurements(command="", model="", images=1, budget=1, rows=both)
    assert table.beaten() == {"b"}

    valid = [one.name for one in recommend(hub, tiny_cnn()).candidates if one.valid]
    scored = {row.explainer for row in measurements().rows} - measurements().beaten()
    assert set(valid[: len(scored & set(valid))]) == scored & set(valid)
    assert not {name for name in scored if name.startswith("control_")} & set(valid)


@pytest.mark.parametrize("text", ["5", "soon", "0s", "-1s"])
def test_a_time_is_in_seconds_or_minutes(text: str) -> None:
    assert (parse_time("5s"), parse_time("2m")) == (5, 120)
    with pytest.raises(ParameterError, match="give seconds or minutes"):
        parse_time(text)


def test_the_command_prints_a_table_and_json(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    given = ("recommend", "-m", "model.py:build", "--time", "5s")
    shown, record = run(*given), run(*given, "--json")

    assert shown.exit_code == record.exit_code == 0, shown.output + record.output
    assert "attention_rollout" in shown.output.partition("not valid, or not tried")[2]
    assert "--budget 5s" in shown.output.partition("try first")[2]
    assert f"means over {measurements().images} images" in shown.stderr
    (found,) = json.loads(record.stdout)
    assert found["time"] == 5
    assert all("IMAGE -m model.py:build -e" in command for command in found["commands"])
    rise = next(one for one in found["explainers"] if one["name"] == "rise")
    assert {row["metric"] for row in rise["measured"]} == {"insertion", "deletion"}
    wrong = run("recommend", "--time", "5")
    assert wrong.exit_code != 0
    assert "error: time cannot be '5'" in wrong.stderr


def test_the_preprocessing_of_a_model_is_part_of_the_commands(run: Run, tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text("name: tiny\narchitecture: test_resnet\nweights: {source: none}\n")
    done = run("recommend", "-m", "card.yaml", "--input", "mean=0.5", "--input", "size=32", "--json")
    (found,) = json.loads(done.stdout)
    assert all("-m card.yaml --input mean=0.5 --input size=32 -e" in command for command in found["commands"])
    assert run("recommend", "-m", "card.yaml", "--input", "size=0").exit_code != 0


def test_the_published_table_is_sound_and_on_the_page(hub: Hub) -> None:
    found = measurements()

    assert {row.explainer for row in found.rows} <= set(hub.explainers.names())
    assert all(row.low <= row.mean <= row.high and row.count == found.images for row in found.rows)
    for metric in ("insertion", "deletion"):
        rows = [row for row in found.rows if row.metric == metric and not row.explainer.startswith("control_")]
        (best,) = [row for row in rows if row.best]
        spec = hub.metrics.get(metric)
        assert best.mean == (max if spec.higher_is_better else min)(row.mean for row in rows)
    text = PAGE.read_text(encoding="utf-8")
    assert measured.table(found) in text
    assert found.command in text


def test_the_table_is_read_from_a_run(run: Run, cat: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    done = run(
        "evaluate", str(cat), "-m", "model.py:build", "-e", "saliency", "-e", "smoothgrad", "-k", "sparseness",
        "-k", "complexity", "--no-controls", "--budget", "30", "--shard", "1/1", "-o", "run", "-q",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = measured.read(tmp_path / "run")

    assert (found.images, found.budget, len(found.rows)) == (1, 30, 4)
    assert found.command.startswith("xaihub evaluate cat.png -m model.py:build")
    assert "--budget 30 --shard 1/1" in found.command
    assert {row.metric: row.higher_is_better for row in found.rows} == {"sparseness": True, "complexity": False}
    saliency, smooth = found.ranks()["saliency"], found.ranks()["smoothgrad"]
    assert {saliency, smooth} <= {1.0, 1.5, 2.0}
    assert saliency + smooth == 3
