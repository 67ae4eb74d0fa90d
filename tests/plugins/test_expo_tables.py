"""The paper's experiment on tables: the effect within margins, what it must not be, its measures and its command."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from torch import Tensor

from xaihub.cli import cli
from xaihub.errors import MissingExtra, ParameterError
from xaihub_expo.reproduction.datasets import TABLES, Table, make_split
from xaihub_expo.reproduction.experiment import Result, contenders, run
from xaihub_expo.reproduction.explainers import Lime, Maple, weighted_ridge
from xaihub_expo.reproduction.quality import Linear, assess
from xaihub_expo.reproduction.training import fit

pytest.importorskip("mlxtend")
AUTOMPG = ["none", "fidelity=0.005", "fidelity=0.05", "1d=0.005", "l2=0.005"]
HOUSING = ["none", "fidelity=0.001", "fidelity=0.005", "fidelity=0.01", "fidelity=0.1", "1d=0.005", "stability=0.05"]


class Measured:
    """Means over splits, and ratios of them to those of the plain network."""

    def __init__(self, results: list[Result]) -> None:
        self.results = results

    @classmethod
    def run(cls, folder: Path, name: str, texts: list[str], splits: int) -> Measured:
        """Train and assess once, also if several processes share the tests."""
        file, table = folder / f"expo-{name}-{splits}.json", TABLES[name]
        with FileLock(f"{file}.lock"):
            if not file.exists():
                found = run(table, contenders(table, texts), splits=splits, points=8 * splits)
                file.write_text(json.dumps([vars(result) for result in found]))
            return cls([Result(**record) for record in json.loads(file.read_text())])

    def values(self, metric: str, contender: str) -> list[float]:
        return [result.metrics[metric] for result in self.results if result.contender == contender]

    def mean(self, metric: str, contender: str) -> float:
        return statistics.fmean(self.values(metric, contender))

    def ratio(self, metric: str, contender: str) -> float:
        return self.mean(metric, contender) / self.mean(metric, "none")

    def rows(self, contender: str) -> float:
        """Rows per epoch, which is one step."""
        return statistics.fmean(r.rows / r.epochs for r in self.results if r.contender == contender)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run alone that all of its processes have."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="module", params=[1, pytest.param(5, marks=pytest.mark.slow)], ids="{}-splits".format)
def splits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def _all_splits(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.slow(pytest.mark.parametrize("splits", [5], indirect=True)(test))


@pytest.fixture(scope="module")
def autompg(shared: Path, splits: int) -> Measured:
    return Measured.run(shared, "autompg", AUTOMPG, splits)


@pytest.fixture(scope="module")
def housing(shared: Path, splits: int) -> Measured:
    return Measured.run(shared, "housing", HOUSING, splits)


def test_a_little_fidelity_makes_autompg_easier_to_explain_at_no_cost(autompg: Measured) -> None:
    assert autompg.ratio("lime_neighbourhood", "fidelity=0.005") <= 0.75
    assert autompg.ratio("lime_stability_fresh", "fidelity=0.005") <= 0.5
    assert autompg.ratio("loss", "fidelity=0.005") <= 1.05


def test_the_published_weight_makes_autompg_much_easier_to_explain(autompg: Measured) -> None:
    assert autompg.ratio("lime_neighbourhood", "fidelity=0.05") <= 0.5
    assert autompg.ratio("lime_stability_fresh", "fidelity=0.05") <= 0.25
    assert autompg.ratio("loss", "fidelity=0.05") <= 1.25
    pairs = zip(
        autompg.values("lime_neighbourhood", "fidelity=0.05"), autompg.values("lime_neighbourhood", "none"), strict=True
    )
    assert all(after < before for after, before in pairs)


def test_the_effect_is_not_that_outputs_shrink(autompg: Measured) -> None:
    assert autompg.ratio("lime_relative_neighbourhood", "fidelity=0.05") <= 0.5
    assert autompg.ratio("lime_relative_stability", "fidelity=0.05") <= 0.4


@_all_splits
def test_the_published_weight_makes_housing_easier_to_explain(housing: Measured) -> None:
    assert housing.ratio("lime_neighbourhood", "fidelity=0.005") <= 0.6
    assert housing.ratio("lime_stability_fresh", "fidelity=0.005") <= 0.4
    assert housing.ratio("loss", "fidelity=0.005") <= 1.4


def test_along_lines_the_effect_is_weaker(autompg: Measured) -> None:
    assert autompg.ratio("lime_neighbourhood", "1d=0.005") <= 0.85


@_all_splits
def test_along_lines_it_is_weaker_and_costs_fewer_rows_on_housing_too(housing: Measured) -> None:
    assert housing.ratio("lime_neighbourhood", "1d=0.005") <= 0.85
    assert housing.rows("1d=0.005") == 128 + 16 * 20 < housing.rows("fidelity=0.005") == 128 + 16 * 22
    assert housing.rows("none") == 128


def test_weight_decay_does_less_than_half_of_it(autompg: Measured) -> None:
    decay = abs(1 - autompg.ratio("lime_neighbourhood", "l2=0.005"))

    assert decay < 0.5 * (1 - autompg.ratio("lime_neighbourhood", "fidelity=0.005"))


@_all_splits
def test_stability_flattens_a_regression(housing: Measured) -> None:
    assert housing.ratio("loss", "stability=0.05") >= 2


def test_more_penalty_is_more_fidelity(autompg: Measured) -> None:
    errors = [autompg.mean("lime_neighbourhood", name) for name in ("none", "fidelity=0.005", "fidelity=0.05")]

    assert errors == sorted(errors, reverse=True)


@_all_splits
def test_more_penalty_is_less_accuracy_down_to_that_of_a_linear_model(housing: Measured, splits: int) -> None:
    order = ["none", "fidelity=0.001", "fidelity=0.01", "fidelity=0.1"]
    errors = [housing.mean("lime_neighbourhood", name) for name in order]

    assert errors == sorted(errors, reverse=True)
    linear = statistics.fmean(_linear_error("housing", seed) for seed in range(splits))
    assert 0.7 * linear < housing.mean("loss", "fidelity=0.1") < 1.1 * linear
    assert housing.mean("loss", "none") < 0.8 * linear


def _linear_error(name: str, seed: int) -> float:
    split = make_split(TABLES[name], seed)
    A, B = (torch.cat([x, torch.ones(len(x), 1)], 1).double() for x, _ in (split.train, split.test))
    weights = torch.linalg.lstsq(A, split.train[1].double()).solution
    return float((B @ weights - split.test[1]).square().mean())


def test_a_linear_network_gets_no_infinite_weight() -> None:
    split = make_split(TABLES["autompg"], 0)

    assert np.isfinite(fit(split, depth=0, width=1, penalty="fidelity", c=0.005, seed=0, max_epochs=1).gamma)


def test_splits_are_standardised_by_their_training_part_and_do_not_overlap() -> None:
    split = make_split(TABLES["housing"], 3)

    assert [len(part[0]) for part in (split.train, split.validation, split.test)] == [253, 126, 127]
    assert split.train[0].shape[1] == 11
    assert make_split(TABLES["autompg"], 0).train[0].shape == (196, 7)
    torch.testing.assert_close(split.train[0].mean(0), torch.zeros(11), atol=1e-5, rtol=0)
    torch.testing.assert_close(split.train[1].std(correction=0), torch.tensor(1.0))
    rows = [tuple(row) for part in (split.train, split.validation, split.test) for row in part[0].tolist()]
    assert len(set(rows)) == len(rows)


# Measures


def affine(x: Tensor) -> Tensor:
    return x @ torch.tensor([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0]]).to(x) + torch.tensor([1.0, -1.0]).to(x)


def exact(points: Tensor, *, seed: int) -> Linear:
    del seed
    slopes = affine(torch.eye(3)) - affine(torch.zeros(1, 3))
    return Linear(
        slopes.double().expand(len(points), -1, -1), affine(torch.zeros(1, 3)).double().expand(len(points), -1)
    )


def test_an_exact_explanation_of_a_linear_model_is_faithful_and_stable() -> None:
    found = assess(affine, exact, torch.randn(30, 3, generator=torch.Generator().manual_seed(0)))

    assert (found["point"], found["neighbourhood"], found["stability"]) == pytest.approx((0, 0, 0), abs=1e-10)


def _far_from_standard() -> Tensor:
    noise = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([2.0, 0.3, 1.0]) + torch.tensor([5.0, 0.0, -1.0])


def test_lime_explains_an_affine_function_almost_exactly() -> None:
    data = _far_from_standard()

    found = assess(affine, Lime(affine, data), data[:20])

    assert found["neighbourhood"] < 1e-3 * found["variance"]
    assert found["point"] < 1e-3 * found["variance"]


def test_the_intercept_of_lime_is_in_the_units_of_the_data() -> None:
    data = _far_from_standard()
    points = data[100:110]

    found = Lime(affine, data)(data[:1], seed=0)

    torch.testing.assert_close(found(points[None])[0], affine(points).double(), rtol=0.02, atol=0.1)


def test_stability_explains_the_neighbour_and_not_the_point_again() -> None:
    def itself(points: Tensor, *, seed: int) -> Linear:
        del seed
        return Linear(points.double().unsqueeze(2), torch.zeros(len(points), 1, dtype=torch.float64))

    points = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    found = assess(lambda x: x[:, :1], itself, points, sigma=0.3, stability_draws=5)

    assert found["stability"] == pytest.approx(0.3**2 * 6, rel=0.05)
    assert found["stability_as_coded"] == 0


def test_common_random_numbers_leave_only_the_change_of_the_point() -> None:
    def wiggly(x: Tensor) -> Tensor:
        return (2 * x[:, :1]).sin() + x[:, 1:2] ** 2

    data = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    found = assess(wiggly, Lime(wiggly, data), data[:20])

    assert found["stability"] < 0.3 * found["stability_fresh"]
    assert found["stability_as_coded"] == pytest.approx(found["stability_fresh"], rel=0.3)


def test_the_weighted_ridge_is_scikit_learns() -> None:
    from sklearn.linear_model import Ridge

    g = torch.Generator().manual_seed(0)
    X, Y = torch.randn(2, 50, 4, generator=g), torch.randn(2, 50, 2, generator=g)
    weights = torch.rand(2, 50, generator=g)

    found = weighted_ridge(X, Y, weights, alpha=1.5)

    for row in range(2):
        ridge = Ridge(alpha=1.5).fit(X[row].double(), Y[row].double(), sample_weight=weights[row].double())
        np.testing.assert_allclose(found.coefficients[row].T, ridge.coef_, atol=1e-10)
        np.testing.assert_allclose(found.intercepts[row], ridge.intercept_, atol=1e-10)


def test_maple_weighs_training_points_by_shared_leaves() -> None:
    g = torch.Generator().manual_seed(0)
    data, validation = torch.randn(80, 3, generator=g), torch.randn(30, 3, generator=g)
    maple = Maple(affine, data, validation)
    forest = maple._outputs[0]
    point = validation[:1].double()

    wanted = np.zeros(80)
    for tree in forest._forest.estimators_:
        same = tree.apply(data.numpy().astype(np.float32)) == tree.apply(point.numpy().astype(np.float32))
        wanted += same / same.sum()

    np.testing.assert_allclose(forest._weights(point)[0], wanted, rtol=1e-6)
    found = maple(validation, seed=0)
    assert found.coefficients.shape == (30, 3, 2)
    error = (found(validation.unsqueeze(1))[:, 0] - affine(validation)).square().mean()
    assert float(error) < 0.05 * float(affine(validation).var())


# The command


def test_the_command_shows_measured_and_published_values_side_by_side(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    words = [
        "--data",
        "autompg",
        "--splits",
        "1",
        "--points",
        "3",
        "-p",
        "none",
        "-p",
        "1d",
        "--maple",
        "-o",
        str(file),
    ]

    result = CliRunner().invoke(cli, ["reproduce", "expo", *words])

    assert result.exit_code == 0, result.output
    lines = {line[:22].strip(): line for line in result.stdout.splitlines() if line[:22].strip()}
    assert "0.041 (0.012)" in lines["LIME NF"]
    assert "0.015 (0.0099)" in lines["MAPLE S"]
    record = json.loads(file.read_text())
    assert {entry["contender"] for entry in record["results"]} == {"none", "1d=0.005"}
    published = {(r["metric"], r["model"]): r["published_mean"] for r in record["summary"]}
    assert published["lime_neighbourhood", "1d=0.005"] == 0.029


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "iris"], "iris"),
        (["--splits", "0"], "0"),
        (["-p", "lasso"], "no penalty is named 'lasso'"),
        (["-p", "fidelity=much"], "'fidelity=much'"),
        (["-p", "l2"], "needs its fraction"),
        (["-p", "none=1"], "'none=1'"),
        (["-o", "/there/is/no/folder.json"], "the folder does not exist"),
    ],
)
def test_wrong_input_is_one_clear_line(words: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["reproduce", "expo", *words])

    assert result.exit_code != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_data_of_a_package_that_is_not_installed_say_what_to_install() -> None:
    def load() -> tuple[np.ndarray, np.ndarray]:
        raise ModuleNotFoundError("no", name="mlxtend")

    table = Table(name="autompg", load=load, depth=1, width=2, c_fidelity=0.1, c_line=0.1)

    with pytest.raises(MissingExtra, match="mlxtend"):
        run(table, contenders(table, ["none"]), splits=1)


def test_classes_are_judged_by_probabilities() -> None:
    table = TABLES["breast_cancer"]
    small = Table(name="small", load=table.load, depth=1, width=20, c_fidelity=0.01, c_line=0.01, binary=True)

    found = run(small, contenders(small, ["none", "fidelity"]), splits=1, points=4)

    assert all(result.metrics["loss"] < 0.15 for result in found)
    assert all(0 < result.metrics["lime_variance"] <= 0.25 for result in found)


def test_a_penalty_without_a_fraction_is_refused() -> None:
    with pytest.raises(ParameterError, match="stability"):
        contenders(TABLES["autompg"], ["stability"])


@pytest.mark.parametrize("load", [table.load for table in TABLES.values()], ids=list(TABLES))
def test_every_table_can_be_loaded_offline(load: Callable[[], tuple[np.ndarray, np.ndarray]]) -> None:
    X, y = load()

    assert X.ndim == 2
    assert len(X) == len(y) > 300
