"""`-p` means the same in every command: NAME=VALUE for all that have it, WHO.NAME=VALUE for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from xaihub import Hub, ParameterError
from xaihub.api.parameters import Setting, assign

Run = Callable[..., Result]
COMMANDS = {
    "explain": ("-e", "rise", "-e", "gradcam"),
    "compare": ("-e", "rise", "-e", "gradcam"),
    "evaluate": ("cat.png", "-e", "rise", "-e", "gradcam", "-k", "insertion", "-o", "run"),
    "rank": ("-e", "shap_global", "-e", "permutation_importance"),
    "train": ("digits", "-o", "run"),
    "sweep": ("digits", "smoothing=0,0.1", "-e", "rise", "-k", "insertion", "-o", "run"),
}
WRONG = {
    "steps": "'steps' is not NAME=VALUE",
    "=4": "'=4' is not NAME=VALUE",
    "nosuch.steps=4": "nothing named 'nosuch' is selected",
    "nosuchthing=4": "parameter 'nosuchthing'",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("setting", WRONG)
def test_a_wrong_setting_is_one_line_in_every_command(run: Run, cat: Path, command: str, setting: str) -> None:
    result = run(command, *COMMANDS[command], "-p", setting)

    assert result.exit_code == 2, result.output
    assert WRONG[setting] in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("run").exists()


def test_a_plain_name_goes_to_all_that_have_it_and_a_full_name_to_one() -> None:
    hub = Hub()
    selected = [hub.explainers.get("rise"), hub.explainers.get("gradcam"), hub.objectives.get("shapley")]
    rise, gradcam, shapley = assign(
        [
            Setting.parse(text)
            for text in ("masks=8", "lambda = 2", "rise.baseline=blur", "masks=9", "rise/rise.cell=4")
        ],
        selected,
    )

    assert rise == {"masks": "9", "baseline": "blur", "cell": "4"}
    assert gradcam == {}
    assert shapley == {"lambda": "2"}


def test_equal_names_of_an_explainer_and_an_objective_share_a_setting() -> None:
    hub = Hub()
    explainer, objective = assign(
        [Setting.parse("shapley.lambda=2"), Setting.parse("shapley.refine=64")],
        [hub.explainers.get("shapley"), hub.objectives.get("shapley")],
    )

    assert (explainer, objective) == ({"refine": "64"}, {"lambda": "2"})


def test_a_near_name_is_suggested() -> None:
    rise = Hub().explainers.get("rise")

    with pytest.raises(ParameterError, match=r"did you mean 'masks'\?"):
        assign([Setting.parse("mask=8")], [rise])
    with pytest.raises(ParameterError, match=r"did you mean 'rise'\?"):
        assign([Setting.parse("ris.masks=8")], [rise])
    with pytest.raises(ParameterError, match="nothing is selected"):
        assign([Setting.parse("masks=8")], [])


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_explainers_get_plain_and_full_names(run: Run, cat: Path, command: str) -> None:
    result = run(command, str(cat), "-e", "rise", "-e", "occlusion", "-p", "masks=4", "-p", "occlusion.window=100",
                 "-p", "occlusion.stride=100", "--json")  # fmt: skip

    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    records = found if command == "explain" else found["explanations"][0]
    assert [record["parameters"].get("masks") for record in records] == [4, None]
    assert [record["parameters"].get("window") for record in records] == [None, 100]


def test_evaluate_gives_them_to_explainers_and_metrics_of_the_plan(run: Run, cat: Path) -> None:
    Path("bench.yaml").write_text(
        "images: [cat.png]\nexplainers: [{name: rise, params: {cell: 4}}]\nmetrics: [insertion, sparseness]\n"
    )
    made = run("evaluate", "--config", "bench.yaml", "-p", "masks=4", "-p", "steps=3", "--no-controls", "-o", "r", "-q")
    assert made.exit_code == 0, made.stderr
    rows = json.loads(run("export", "r", "--format", "json").stdout)
    assert {(row["explainer_parameters"]["cell"], row["explainer_parameters"]["masks"]) for row in rows} == {(4, 4)}
    assert {row["metric"]: row["metric_parameters"].get("steps") for row in rows} == {
        "insertion": 3,
        "sparseness": None,
    }


def test_train_gives_them_to_the_objective(run: Run, tmp_path: Path) -> None:
    small = ("-m", "test_resnet", "--scratch", "--size", "32", "--epochs", "1", "--device", "cpu", "-q")
    made = run("train", "digits", *small, "-p", "cross_entropy.smoothing=0.1", "-o", "run")

    assert made.exit_code == 0, made.stderr
    assert yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8"))["parameters"] == {"smoothing": "0.1"}


def test_sweep_gives_them_to_objective_explainers_and_metrics(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def sweep(_hub: Hub, config: object, *_values: object, judged: object, **_options: object) -> None:
        seen.update(config=config, judged=judged)
        raise ParameterError("enough")

    monkeypatch.setattr("xaihub.training.sweep.sweep", sweep)
    run("sweep", "digits", "c=0,1", "--objective", "expo-stability", "-e", "rise", "-k", "insertion", "-p", "every=2",
        "-p", "masks=8", "-p", "insertion.steps=3", "-o", "run")  # fmt: skip

    assert seen["config"].parameters == {"every": "2"}
    assert [(item.parameters, item.metric_parameters) for item in seen["judged"]] == [
        ({"masks": "8"}, {"insertion": {"steps": "3"}})
    ]
