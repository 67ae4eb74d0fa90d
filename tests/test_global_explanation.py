"""Global explanations: results, files, and the base class of global explainers."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xaihub import (
    ExplainerRefused,
    GlobalExplainer,
    GlobalExplainerSpec,
    GlobalExplanation,
    Hub,
    Meta,
    Model,
    ParameterError,
    Preprocessing,
    Ranking,
    hookimpl,
)
from xaihub.errors import OutputError, PluginError, UnknownName
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.onefile import register_file


def explanation(**changes: Any) -> GlobalExplanation:
    values: dict[str, Any] = {
        "runs": torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.2, 0.4, 0.3, 0.1]]),
        "names": ("a", "b", "c", "d"),
        "feature": "column",
        "method": "scores",
        "history": torch.rand(3, 4, dtype=torch.float64),
        "metadata": {"model": "toy", "seed": 3, "warnings": ["few rows"], "gap": float("nan")},
    }
    return GlobalExplanation(**{**values, **changes})


def test_features_are_ranked_by_their_mean_with_an_interval() -> None:
    found = explanation()

    assert [item.name for item in found.ranking] == ["b", "c", "a", "d"]
    assert [item.rank for item in found.ranking] == [1, 2, 3, 4]
    first = found.ranking[0]
    # Two runs: mean 0.45, deviation 0.0707, Student's t with one degree of freedom 12.706.
    assert first.weight == pytest.approx(0.45)
    assert (first.low, first.high) == pytest.approx((0.45 - 12.706 * 0.05, 0.45 + 12.706 * 0.05), rel=1e-4)
    assert found.claim == "scores: column importance in toy (4 features, 2 runs)"
    assert found.warnings == ["few rows"]


def test_one_run_has_no_interval_and_ties_go_by_index() -> None:
    found = explanation(runs=torch.tensor([0.3, 0.2, 0.3, 0.2]), history=None)

    assert [(item.index, item.low, item.high) for item in found.ranking] == [
        (0, None, None),
        (2, None, None),
        (1, None, None),
        (3, None, None),
    ]
    assert found.table(1) == [
        {"rank": 1, "index": 0, "name": "a", "weight": pytest.approx(0.3), "low": None, "high": None,
         "times_uniform": pytest.approx(1.2)}
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".json"])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    before = explanation()
    path = before.save(tmp_path / "deep" / f"ranking{suffix}")
    after = GlobalExplanation.load(tmp_path / "deep" / f"ranking{suffix}")

    assert torch.equal(after.runs, before.runs)
    assert after.history is not None
    assert before.history is not None
    assert torch.equal(after.history, before.history)
    assert (after.names, after.feature, after.method) == (before.names, before.feature, before.method)
    assert after.metadata == {"model": "toy", "seed": 3, "warnings": ["few rows"], "gap": None}
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-written is left


def test_the_json_holds_the_ranking_for_people(tmp_path: Path) -> None:
    record = json.loads(explanation().save(tmp_path / "a.json").read_text(encoding="utf-8"))

    assert [row["name"] for row in record["ranking"]] == ["b", "c", "a", "d"]
    assert record["kind"] == "global explanation"


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, suffix: str) -> None:
    path = explanation().save(tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(OutputError, match="is damaged or not a saved global explanation"):
        GlobalExplanation.load(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[]", "damaged or not a saved"),
        ("a.json", b'{"format": 1}', "damaged or not a saved"),
        ("a.json", json.dumps({"format": 9, "kind": "global explanation", "runs": [[1]], "history": None}).encode(),
         "not a global explanation of this version"),
        ("a.safetensors", pickle.dumps({"runs": 1}), "damaged or not a saved"),
        ("a.safetensors", b"", "damaged or not a saved"),
    ],
)  # fmt: skip
def test_a_foreign_file_is_one_clear_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(OutputError, match=message):
        GlobalExplanation.load(tmp_path / name)


def test_a_missing_file_and_a_folder_that_takes_none_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no file"):
        GlobalExplanation.load(tmp_path / "nothing.json")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot write"):
        explanation().save(tmp_path / "file" / "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("a",)}, "4 features have 1 names"),
        ({"runs": torch.zeros(2, 0)}, "are not finite"),
        ({"runs": torch.full((1, 4), float("nan"))}, "are not finite"),
        ({"history": torch.zeros(3, 5)}, "does not have 4 columns"),
        ({"grid": (2, 3)}, "2x3 cells does not have 4 features"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        explanation(**changes)


def test_rankings_of_several_seeds_become_runs_of_one() -> None:
    parts = [explanation(runs=torch.rand(4), history=None, metadata={"seed": seed, "model": "toy"}) for seed in (0, 1)]
    found = GlobalExplanation.combine(parts)

    assert found.runs.shape == (2, 4)
    assert torch.equal(found.runs[1], parts[1].runs[0])
    assert [part["seed"] for part in found.metadata["parts"]] == [0, 1]
    with pytest.raises(ParameterError, match="rankings of different features or methods"):
        GlobalExplanation.combine([parts[0], explanation(method="shap_global")])
    with pytest.raises(ParameterError, match="no ranking to combine"):
        GlobalExplanation.combine([])


@pytest.mark.parametrize("changes", [{}, {"grid": (2, 2)}, {"runs": torch.zeros(4), "history": None}])
def test_a_chart_can_be_drawn(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = explanation(**changes).save_png(tmp_path / "a.png", top=3)

    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.format == "PNG"
        assert image.width > 800


def test_the_chart_shows_the_top_features_in_their_order() -> None:
    axes = explanation().plot(top=3).axes[0]

    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.45, 0.25, 0.15])


class Sum(nn.Module):
    """Class scores: brightness of the red and of the green channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))[:, :2] * self.scale


def model() -> Model:
    preprocessing = Preprocessing(spatial=[], size=(3, 4, 4), mean=(0, 0, 0), std=(1, 1, 1))
    return Model(Sum(), name="toy", preprocessing=preprocessing, classes=("red", "green"))


class Brightness(GlobalExplainer):
    """Weigh each channel by its brightness, times a random factor."""

    needs_images = True

    def __init__(self, *, power: Annotated[float, Meta(gt=0, description="An exponent.")] = 1.0) -> None:
        self.power = power

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:
        rows = torch.cat([*inputs])
        model.predict(rows)
        weights = rows.mean((0, 2, 3)).abs() ** self.power * (1 + 1e-3 * torch.rand(3))
        return Ranking(weights=weights, feature="input channel", details={"rows": len(rows)}, warnings=["a note"])


def test_an_explainer_returns_a_ranking_with_its_record() -> None:
    toy, x = model(), torch.rand(5, 3, 4, 4)
    found = Brightness(power=2).explain(toy, [x[:2], x[2:]], seed=7)

    assert torch.allclose(found.weights, x.mean((0, 2, 3)).double() ** 2, rtol=2e-3)
    assert found.names == ("input channel 0", "input channel 1", "input channel 2")
    assert found.metadata["parameters"] == {"power": 2}
    assert (found.metadata["seed"], found.metadata["forward_passes"], found.metadata["details"]) == (7, 5, {"rows": 5})
    assert found.metadata["weights_sha256"] == toy.weights_hash
    assert found.warnings == ["a note"]
    assert found.metadata["cpu_seconds"] >= 0


def test_a_seed_fixes_the_ranking_and_random_state_outside_is_left_alone() -> None:
    toy, x = model(), torch.rand(2, 3, 4, 4)
    state = torch.get_rng_state()
    first, again, other = (Brightness().explain(toy, x, seed=seed).runs for seed in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


class Nonsense(Brightness):
    """Returns weights of the wrong form."""

    needs_images = False

    def __init__(self, *, kind: str = "nan") -> None:
        self.kind = kind

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:
        weights = {"nan": torch.full((3,), float("nan")), "shape": torch.zeros(2, 2), "names": torch.zeros(3)}
        return Ranking(weights=weights[self.kind], feature="thing", names=("one",) * (self.kind == "names"))


class Rude(Brightness):
    """Leaves the model changed."""

    def rank(self, model: Model, inputs: Iterable[Tensor], labels: Tensor | None) -> Ranking:
        model.module.train()
        model.module.register_forward_hook(lambda *_: None)
        return super().rank(model, inputs, labels)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("nan", "NaN or infinite weights on 'toy'"), ("shape", r"shape \(2, 2\)"), ("names", "1 names for 3 features")],
)
def test_nonsense_is_refused(kind: str, message: str) -> None:
    with pytest.raises((ExplainerRefused, ParameterError), match=message):
        Nonsense(kind=kind).explain(model())


def test_a_changed_model_is_restored_and_the_ranking_discarded() -> None:
    toy = model()
    with pytest.raises(PluginError, match=r"'Rude' changed the setting 'training' .* the result is discarded"):
        Rude().explain(toy, torch.rand(1, 3, 4, 4))
    assert not toy.module.training
    assert not toy.module._forward_hooks


def test_missing_images_and_wrong_parameters_are_refused() -> None:
    with pytest.raises(ExplainerRefused, match="Brightness needs images to rank features"):
        Brightness().explain(model())
    with pytest.raises(ParameterError, match="'power' of Brightness cannot be 0"):
        Brightness(power=0).explain(model(), torch.rand(1, 3, 4, 4))


class Plugin:
    """Registers the explainer above, and something that is none."""

    @hookimpl
    def xaihub_register_global_explainers(self) -> list[GlobalExplainerSpec]:
        here = Path(__file__)
        return [
            GlobalExplainerSpec(name="brightness", target=f"{here}:Brightness"),
            GlobalExplainerSpec(name="broken", target=f"{here}:Sum"),
        ]


def test_a_plugin_can_register_one() -> None:
    host = PluginHost(entry_points=[])
    host.register(Plugin(), name="mine")
    hub = Hub(host)

    assert hub.get_global_explainer("brightness", power="2").parameters == {"power": 2.0}
    with pytest.raises(UnknownName, match=r"no global explainer is named 'brigthness' \(did you mean 'brightness'"):
        hub.get_global_explainer("brigthness")
    with pytest.raises(UnknownName, match="xaihub list global_explainers"):
        hub.get_global_explainer("qqqq")
    with pytest.raises(PluginError, match=r"not a subclass of xaihub\.GlobalExplainer"):
        hub.get_global_explainer("broken")


def test_a_class_in_a_single_file_is_registered_as_well(tmp_path: Path) -> None:
    file = tmp_path / "norms.py"
    file.write_text(
        "from xaihub import GlobalExplainer, Ranking\n"
        "class WeightNorm(GlobalExplainer):\n"
        "    'Rank by the size of weights.'\n"
        "    limits = 'A norm says little.'\n"
        "    def rank(self, model, inputs, labels):\n"
        "        return Ranking(weights=model.module.scale.abs(), feature='class')\n",
        encoding="utf-8",
    )
    host = PluginHost(entry_points=[])
    register_file(host, file)
    hub = Hub(host)

    assert hub.global_explainers.get("weight_norm").limits == "A norm says little."
    assert hub.get_global_explainer("weight_norm").explain(model()).weights.tolist() == [1, 1]
