"""Several budgets in one evaluation: each explainer that can choose its passes runs at each, and all are kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from tests.evaluate.toys import Toys, config
from xaihub import Explainer, ExplainerSpec, Meta, Model, Passes, ResolvedTarget, hookimpl, rounds
from xaihub.api.evaluate import planned
from xaihub.cli import _defaults, cli
from xaihub.cli._app import App
from xaihub.cli.evaluate import evaluate as evaluate_on_the_command_line
from xaihub.errors import ParameterError
from xaihub.evaluation.config import Choice, Config, read_config
from xaihub.evaluation.isolation import unpacked
from xaihub.evaluation.leaderboard import boards
from xaihub.evaluation.local import LocalEngine
from xaihub.evaluation.plan import make_plan, methods
from xaihub.evaluation.report.commands import evaluate_command
from xaihub.evaluation.run import evaluate, settings_of_workers
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost


class ToySampled(Explainer):
    """The mean map of random inputs, as many as the budget allows."""

    samples: Annotated[int, Meta(ge=1, description="Random inputs."), Passes()] = 8
    scale: Annotated[float, Meta(ge=0, description="Their size.")] = 1.0

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        total = torch.zeros_like(inputs[:, :1])
        for until in rounds(self.samples):
            noisy = inputs + self.scale * torch.randn(until, *inputs.shape[1:])
            total = (target.score(model(noisy))[:, None, None, None] * noisy).mean((0, 1), keepdim=True)
        return total


class Sampling(Toys):
    """The toys, and one that takes a budget."""

    @hookimpl
    def xaihub_register_explainers(self) -> list[ExplainerSpec]:
        sampled = ExplainerSpec(name="toy_sampled", target=f"{__name__}:ToySampled")
        return [*super().xaihub_register_explainers(), sampled]


@pytest.fixture
def sampling() -> Hub:
    host = PluginHost(entry_points=[])
    host.register(Sampling(), name="toys")
    return Hub(host)


def chosen(photos: Path, **changes: Any) -> Config:
    settings = {"explainers": ["toy_sampled", "toy_gradient"], "metrics": ["toy_mean"], "budget": [4, 16, "64"]}
    return config(photos, **{**settings, **changes})


def test_each_explainer_runs_at_each_budget_and_others_once(sampling: Hub, photos: Path, store: RunStore) -> None:
    plan = make_plan(sampling, chosen(photos))
    assert [(e.name, e.parameters.get("samples")) for e in plan.explainers] == [
        ("toy_sampled", 4), ("toy_sampled", 16), ("toy_sampled", 64), ("toy_gradient", None), ("toy_noise", None),
    ]  # fmt: skip
    assert plan.notes == [
        "toy_gradient cannot choose its number of passes, so the budgets of 4 passes, 16 passes, 64 passes do not apply"
        " to it"
    ]
    evaluate(sampling, plan, store)
    rows = store.rows()
    (board,) = boards(rows, sampling)
    assert board.explainers == [
        "toy_gradient", "toy_sampled samples=4", "toy_sampled samples=16", "toy_sampled samples=64", "toy_noise",
    ]  # fmt: skip
    spent = {row.record["budget"]: row.record["forward_passes"] for row in rows if "budget" in row.record}
    assert spent == {"4 passes": 4, "16 passes": 16, "64 passes": 64}
    assert evaluate(sampling, plan, store).explanations == 0  # all are stored, each under its own key


def test_budgets_of_seconds_are_kept_apart(sampling: Hub, photos: Path) -> None:
    explainers, _ = methods(sampling, chosen(photos, budget=["1s", "2s"], controls=False))
    assert [explainer.settings.get("--budget") for explainer in explainers] == ["1 s", "2 s", None]


def test_a_budget_of_its_own_takes_the_place_of_the_plans(sampling: Hub, photos: Path, tmp_path: Path) -> None:
    explainers = [Choice("toy_sampled", {"scale": 0.5}, 7), "toy_sampled"]
    made, _ = methods(sampling, chosen(photos, explainers=explainers, budget=[4, 4], controls=False))
    assert [(e.parameters["samples"], e.parameters["scale"]) for e in made] == [(7, 0.5), (4, 1.0)]
    with pytest.raises(ParameterError, match="metric 'toy_mean' cannot have a budget"):
        methods(sampling, chosen(photos, metrics=[Choice("toy_mean", {}, 7)]))
    with pytest.raises(ParameterError, match=r"budget of 4 passes and samples=9 of toy_sampled contradict"):
        methods(sampling, chosen(photos, explainers=[Choice("toy_sampled", {"samples": 9})]))
    file = tmp_path / "plan.yaml"
    file.write_text("images: [photos]\nexplainers:\n- {name: rise, budget: 20}\nbudget: [100, 10s]\n")
    read, _ = read_config(file)
    assert (read.budgets, read.explainers) == ([100, "10s"], [Choice("rise", {}, 20)])


def test_workers_compute_the_same_explainers(photos: Path) -> None:
    hub = Hub()
    plan = make_plan(
        hub, config(photos, explainers=["rise", "gradcam"], metrics=["sparseness"], budget=["1s", "2s", 16])
    )
    message, _ = unpacked(settings_of_workers(hub, plan, [], LocalEngine(jobs=2), 0, {}))
    theirs, _ = methods(hub, msgspec.convert(message["config"], type=Config))
    assert [(e.name, e.settings, e.granted) for e in theirs] == [
        (e.name, e.settings, e.granted) for e in plan.explainers
    ]
    assert [e.name for e in theirs][:4] == ["rise", "rise", "rise", "gradcam"]


def test_the_command_takes_several_budgets_and_keeps_them_in_the_run(
    sampling: Hub, photos: Path, tmp_path: Path
) -> None:
    words = ["evaluate", str(photos), "-m", "toy", "-e", "toy_sampled", "-k", "toy_mean", "--no-controls", "-q"]
    words += ["--timeout", "0", "-o", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, [*words, "--budget", "4", "--budget", "8"], obj=App(sampling))
    assert done.exit_code == 0, done.output
    assert "toy_sampled samples=4" in done.stdout
    assert "toy_sampled samples=8" in done.stdout
    with RunStore(tmp_path / "run") as store:
        assert store.config.budgets == ["4", "8"]
        assert "--budget 4 --budget 8 --no-controls" in evaluate_command(store.config)
    one, _ = planned(
        sampling, [str(photos)], lists={"models": [], "explainers": [], "metrics": []}, params=(),
        scalars={"budget": ("500",)}, no_controls=False, config=None, resume=None,
    )  # fmt: skip
    assert one.budget == "500"


def test_a_default_of_the_users_own_is_one_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XAIHUB_CONFIG", str(tmp_path))
    monkeypatch.setenv("XAIHUB_BUDGET", "500")
    assert _defaults.of_command(evaluate_on_the_command_line)["budget"] == ("500",)
