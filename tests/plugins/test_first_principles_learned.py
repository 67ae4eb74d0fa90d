"""Measures chosen by a metric: the file, the search, the explainer that uses it, and the command."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from xaihub import Case, Hub, Metric, MetricRefused, Model, ParameterError, Preprocessing, XaihubError
from xaihub_first_principles import command, masks
from xaihub_first_principles.catalogue import Question
from xaihub_first_principles.design import block_masks
from xaihub_first_principles.learned import KEY, Header, LearnedMeasure, read_measure
from xaihub_first_principles.measures import integrate
from xaihub_first_principles.method import FirstPrinciples
from xaihub_first_principles.optimise import Found, Settings, optimise_measure
from xaihub_first_principles.search import Mixed, Smoothed, propose, smoothing_weights

SIDE = 12


class _Peaked(nn.Module):
    """Evidence for class 1 in one third of the picture, with a score that saturates: few shown regions tell most."""

    def forward(self, x: Tensor) -> Tensor:
        evidence = x.mean(1)[:, 4:8, 4:8].mean((1, 2))
        return torch.stack([torch.zeros_like(evidence), torch.tanh(3 * evidence)], 1)


def _model() -> Model:
    plain = Preprocessing(spatial=(), size=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.25,) * 3)
    return Model(_Peaked(), name="peaked", preprocessing=plain)


def _header(**changes: Any) -> Header:
    values: dict[str, Any] = {
        "kind": "mixture", "features": "grid:3", "baseline": "black", "output": "logit", "shifts": 1, "smooth": False,
        "budget": 100, "metrics": {"insertion": 1.0}, "model": "peaked", "pictures": (2, 1, 0),
        "gain": (0.1, 0.05, None), **changes,
    }  # fmt: skip
    return Header(**values)


def _mixture(**changes: Any) -> LearnedMeasure:
    tensors = {"p": torch.tensor([0.3, 0.6]).double(), "theta": torch.tensor([0.25, 0.75]).double()}
    return LearnedMeasure(header=_header(**changes), tensors=tensors)


def _weights() -> LearnedMeasure:
    shown = (torch.rand(40, 9, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8)
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    free = smoothing_weights(shown, places, length=0.5, noise=0.1)
    return LearnedMeasure(header=_header(kind="weights"), tensors={"masks": shown, "weights": free})


class _Centre(Metric):
    """The map's value in the middle minus its mean, over its spread: best for maps that find the evidence."""

    def score(self, case: Case) -> float:
        heat = case.heat
        if float(heat.std()) == 0:
            raise MetricRefused("a constant map")
        return float((heat[4:8, 4:8].mean() - heat.mean()) / heat.std())


def _pictures(folder: Path, count: int) -> list[str]:
    files = []
    for number in range(count):
        noise = torch.randint(100, 255, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.byte().numpy()).save(folder / f"{number}.png")
        files.append(str(folder / f"{number}.png"))
    return files


# Mixtures and weights as measures.


def test_a_mixture_is_the_sum_of_its_keep_p_measures() -> None:
    def f(y: Tensor) -> Tensor:
        return torch.tanh(y @ torch.arange(1.0, 6).double() - 3) + y[:, 0] * y[:, 1]

    x = torch.ones(5).double()
    whole = integrate(f, masks.Mixture(ps=(0.2, 0.7), thetas=(0.4, 0.6), budget=1000), x)
    parts = [integrate(f, masks.SignedKeepP(p=p, budget=1000), x).values for p in (0.2, 0.7)]
    assert torch.allclose(whole.values, 0.4 * parts[0] + 0.6 * parts[1], atol=1e-12)
    assert torch.allclose(whole.mass, torch.zeros(5).double(), atol=1e-12)
    runs = torch.stack(
        [
            integrate(f, masks.Mixture(ps=(0.2, 0.7), thetas=(0.4, 0.6), budget=24), x, seed=seed).values
            for seed in range(200)
        ]
    )
    assert bool(((runs.mean(0) - whole.values).abs() < 4 * runs.std(0) / 200**0.5 + 0.01).all())


def test_smoothing_weights_are_the_posterior_mean_of_a_gaussian_process() -> None:
    shown = (torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    places = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0)).double()
    weights = smoothing_weights(shown, places, length=0.8, noise=0.3)
    answers = shown @ torch.tensor([1.0, 2.0, 0.0, -1.0]).double() + 5
    # In the space of effects: (Z'Z / lambda + C^-1)^-1 Z'F / lambda.
    Z = shown - shown.mean(0)
    C = torch.tensor(
        [[float(torch.exp(-(a - b).square().sum() / (2 * 0.64))) for b in places] for a in places], dtype=torch.float64
    )
    noise = 0.3 * (Z @ C @ Z.T).diagonal().mean()
    direct = torch.linalg.solve(Z.T @ Z / noise + C.inverse(), Z.T @ (answers - answers.mean()) / noise)
    assert torch.allclose(weights.T @ answers, direct, atol=1e-10)
    assert torch.allclose(weights.sum(0), torch.zeros(4).double(), atol=1e-12)
    exact = smoothing_weights(shown, places, length=0.01, noise=1e-9).T @ answers
    assert exact.tolist() == pytest.approx([1, 2, 0, -1], abs=1e-5)


def test_masks_of_blocks_show_shifted_squares_with_their_complements() -> None:
    found = block_masks((6, 9), 3, 400, torch.Generator().manual_seed(0))
    shown = found.shown.view(-1, 6, 9)
    assert torch.equal(shown[::2], 1 - shown[1::2])
    assert float(shown.mean()) == pytest.approx(0.5)
    assert bool(((shown.mean(0) - 0.5).abs() < 1e-6).all())
    for mask in shown[:20]:
        rows, columns = (
            set((mask.diff(dim=axis).abs().sum(1 - axis) > 0).nonzero().flatten().tolist()) for axis in (0, 1)
        )
        assert len({(edge + 1) % 3 for edge in rows}) <= 1
        assert len({(edge + 1) % 3 for edge in columns}) <= 1
    assert len({tuple((mask.diff(dim=1).abs().sum(0) > 0).tolist()) for mask in shown}) > 3


# The file.


@pytest.mark.parametrize("make", [_mixture, _weights])
def test_a_saved_measure_is_read_back(tmp_path: Path, make: Any) -> None:
    measure = make()
    found = read_measure(measure.save(tmp_path / "new" / "my.safetensors"))
    assert found.header == measure.header
    assert found.digest == measure.digest
    assert {name: t.tolist() for name, t in found.tensors.items()} == {
        name: t.tolist() for name, t in measure.tensors.items()
    }
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["my.safetensors"]


TENSORS = {"p": torch.tensor([0.3, 0.6]).double(), "theta": torch.tensor([0.25, 0.75]).double()}


def _write(file: Path, tensors: dict[str, Tensor], header: dict[str, Any] | None) -> None:
    text = {} if header is None else {KEY: json.dumps(header)}
    save_file(tensors, file, metadata=text)


@pytest.mark.parametrize(
    ("tensors", "changes", "reason"),
    [
        (TENSORS, {"kind": "other"}, "header that is not understood"),
        (TENSORS, {"version": 2}, "header that is not understood"),
        (TENSORS, {"extra": 1}, "header that is not understood"),
        (TENSORS, {"shifts": 0}, "header that is not understood"),
        ({"p": TENSORS["p"]}, {}, "tensors p and theta, not p"),
        ({**TENSORS, "theta": torch.tensor([0.5, 0.6]).double()}, {}, "must sum to 1"),
        ({**TENSORS, "theta": torch.tensor([1.5, -0.5]).double()}, {}, "not be negative"),
        ({**TENSORS, "theta": torch.tensor([float("nan"), 1.0]).double()}, {}, "not all finite"),
        ({**TENSORS, "p": torch.tensor([0.5, 1.0]).double()}, {}, "between 0 and 1"),
        ({**TENSORS, "p": torch.tensor([0.5]).double()}, {}, "has the shape"),
        ({**TENSORS, "p": torch.tensor([0.3, 0.6])}, {}, "not torch.float64"),
        (
            {"masks": torch.full((2, 3), 7).byte(), "weights": torch.ones(2, 3).double()},
            {"kind": "weights"},
            "not all 0 or 1",
        ),
    ],
)
def test_a_file_that_is_no_measure_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], changes: dict[str, Any], reason: str
) -> None:
    _write(tmp_path / "a.safetensors", tensors, {**msgspec.to_builtins(_header()), **changes})
    with pytest.raises(ParameterError, match=reason):
        read_measure(tmp_path / "a.safetensors")


def test_other_files_are_refused_and_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / "bomb.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ParameterError, match="no safetensors file"):
        read_measure(tmp_path / "bomb.safetensors")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(ParameterError, match="cannot read"):
        read_measure(tmp_path / "none.safetensors")
    _write(tmp_path / "plain.safetensors", TENSORS, None)
    with pytest.raises(ParameterError, match="is no measure"):
        read_measure(tmp_path / "plain.safetensors")


# The explainer.


def _explain(path: Path, **parameters: Any) -> Any:
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) + 0.5
    return FirstPrinciples(measure=str(path), **parameters).explain(_model(), image, 1)[0]


def test_a_mixture_explains_as_its_family_does_with_the_settings_it_brings(tmp_path: Path) -> None:
    file = _mixture().save(tmp_path / "my.safetensors")
    found = _explain(file, budget=512)
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) + 0.5
    settings = {"features": "grid:3", "baseline": "black", "output": "logit", "shifts": 1, "smooth": False}
    parts = [
        FirstPrinciples(family="signed_keep_p", p=p, budget=512, **settings).explain(_model(), image, 1)[0].values
        for p in (0.3, 0.6)
    ]
    assert torch.allclose(found.values, 0.25 * parts[0] + 0.75 * parts[1], atol=1e-6)
    details = found.metadata["details"]
    assert (details["family"], details["exact"]) == ("mixture", True)
    assert details["measure_sha256"] == _mixture().digest
    assert details["measure"]["metrics"] == {"insertion": 1.0}
    assert found.warnings == []


def test_free_weights_explain_by_their_own_masks(tmp_path: Path) -> None:
    file = _weights().save(tmp_path / "my.safetensors")
    first, again = _explain(file), _explain(file)
    assert torch.equal(first.values, again.values)
    assert first.metadata["forwards"] == 40
    assert first.metadata["details"]["exact"]
    assert first.metadata["details"]["stderr_to_spread"] == 0
    assert int(first.values[0].argmax()) in {row * SIDE + column for row in range(4, 8) for column in range(4, 8)}


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"family": "shapley"}, "measure and family=shapley exclude each other"),
        ({"features": "grid:5"}, "features=grid:5 contradicts the measure"),
        ({"output": "probability", "baseline": "white"}, "baseline=white contradicts the measure"),
    ],
)
def test_settings_that_contradict_a_measure_are_refused(
    tmp_path: Path, parameters: dict[str, Any], reason: str
) -> None:
    file = _mixture().save(tmp_path / "my.safetensors")
    with pytest.raises(ParameterError, match=reason):
        _explain(file, **parameters)


def test_free_weights_fit_their_own_regions_and_budget_only(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="for 9 regions"):
        _weights().family(Question(count=16, budget=100))
    with pytest.raises(ParameterError, match="asks at 40 masks, and the budget is 30"):
        _explain(_weights().save(tmp_path / "my.safetensors"), budget=30)


def test_a_measure_of_another_model_says_so(tmp_path: Path) -> None:
    found = _explain(_mixture(model="other").save(tmp_path / "my.safetensors"), budget=512)
    assert any("chosen on 'other', not on 'peaked'" in text for text in found.warnings)


# The search.


@pytest.mark.parametrize("choose", ["p", "sizes", "weights"])
def test_candidates_start_at_keep_p_spread_out_and_then_close_in(choose: Any) -> None:
    known: list[tuple[Any, float]] = []
    for candidate in propose(choose, 20, 0, known):
        known.append((candidate, -abs(sum(candidate.parameters.values()) - 1.1)))
    assert known[0][0] == Mixed()
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
    return optimise_measure(_model(), _pictures(folder, count), {"centre": (_Centre(), 1.0)}, settings)


@pytest.mark.parametrize("choose", ["p", "sizes", "weights"])
def test_the_search_keeps_to_its_pictures_and_never_ends_below_its_start(tmp_path: Path, choose: Any) -> None:
    found = _optimise(tmp_path, choose)
    header = found.measure.header
    assert header.pictures == (4, 2, 2)
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
    model = _model()
    image, _ = model.prepare(Image.open(tmp_path / "0.png"))
    first = FirstPrinciples(measure=str(file), budget=60).explain(model, image[None])[0]
    assert float(_Centre().score(Case(scene=None, explanation=first))) > 0  # type: ignore[arg-type]
    assert first.metadata["forwards"] <= 60


def test_a_noisier_estimate_is_given_up_for_a_better_one(tmp_path: Path) -> None:
    # With 24 masks of 9 regions keep-p is noisy, and neighbouring regions of this evidence are not alike.
    found = optimise_measure(
        _model(),
        _pictures(tmp_path, 24),
        {"centre": (_Centre(), 1.0)},
        Settings(choose="p", features="grid:3", baseline="black", output="logit", budget=24, trials=12),
    )
    assert found.measure.header.gain[0] >= 0
    assert found.measure.header.gain[2] is not None


def test_pictures_that_cannot_be_used_are_left_out_by_name(tmp_path: Path) -> None:
    files = [*_pictures(tmp_path, 7), str(tmp_path / "broken.png")]
    (tmp_path / "broken.png").write_bytes(b"nothing")
    settings = Settings(choose="p", features="grid:3", baseline="black", budget=60, trials=2)
    found = optimise_measure(_model(), files, {"centre": (_Centre(), 1.0)}, settings)
    assert list(found.skipped) == [str(tmp_path / "broken.png")]
    assert sum(found.measure.header.pictures) == 7


def test_too_few_pictures_and_regions_that_do_not_suit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="1 pictures are too few"):
        _optimise(tmp_path, "p", count=1)
    with pytest.raises(ParameterError, match="lie alike in every picture, not 'superpixels:9'"):
        optimise_measure(_model(), [], {}, Settings(features="superpixels:9"))


# The command.


class _SmallHub(Hub):
    def load_model(self, name: str = "", /, **options: Any) -> Model:
        return _model()


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(command.optimise_measure, arguments, obj=SimpleNamespace(hub=_SmallHub()))


def test_the_command_writes_a_measure_that_explains(tmp_path: Path) -> None:
    _pictures(tmp_path, 8)
    file = tmp_path / "out" / "my.safetensors"
    result = _run(
        str(tmp_path), "-o", str(file), "--budget", "50", "--trials", "3", "--features", "grid:3",
        "-p", "insertion.steps=4", "-p", "deletion.steps=4", "--json", "-q",
    )  # fmt: skip
    assert result.exception is None, result.output
    told = json.loads(result.stdout)
    assert told["header"]["pictures"] == [4, 2, 2]
    assert told["header"]["metrics"] == {"insertion": 1, "deletion": -1}
    assert read_measure(file).header.model == "peaked"
    plain = _run(str(tmp_path), "-o", str(file), "--budget", "50", "--trials", "2", "--features", "grid:3", "--logit")
    assert "insertion - deletion, keep-p at 0.5: " in plain.stdout
    assert "gain on 2 pictures that were not used " in plain.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([".", "-o", "a.safetensors", "-k", "pointing_game"], "needs more than one picture and its map"),
        (["none/", "-o", "a.safetensors"], "no such picture or folder: 'none/'"),
        ([".", "-o", "a.pt"], "must end in .safetensors"),
        ([".", "-o", "a.safetensors", "-k", "nothing"], "nothing"),
        ([".", "-o", "a.safetensors", "-k", "cost_forwards", "-p", "x=1"], "is not METRIC.NAME=VALUE"),
        ([".", "-o", "LICENSE/a.safetensors"], "cannot write 'LICENSE/a.safetensors'"),
    ],
)
def test_the_command_refuses_what_cannot_work_before_any_work(arguments: list[str], reason: str) -> None:
    result = _run(*arguments)
    assert result.exit_code != 0
    assert reason in result.output + str(result.exception)
    assert isinstance(result.exception, (XaihubError, SystemExit))
