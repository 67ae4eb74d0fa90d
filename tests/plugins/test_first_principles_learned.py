"""Measures chosen by a metric: what they compute, their file, and the explainer that uses it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.plugins.measure_cases import SIDE, peaked
from xaihub import ParameterError
from xaihub_first_principles import mask_families
from xaihub_first_principles.candidates import Smoothed, block_masks
from xaihub_first_principles.learned_measures import KEY, Header, LearnedMeasure, read_measure
from xaihub_first_principles.measures import integrate
from xaihub_first_principles.method import FirstPrinciples
from xaihub_first_principles.registry import FamilySettings


def _header(**changes: Any) -> Header:
    values: dict[str, Any] = {
        "kind": "mixture", "features": "grid:3", "baseline": "black", "output": "logit", "shifts": 1, "smooth": False,
        "budget": 100, "metrics": {"insertion": 1.0}, "model": "peaked", "images": (2, 1, 0),
        "gain": (0.1, 0.05, None), **changes,
    }  # fmt: skip
    return Header(**values)


def _mixture(**changes: Any) -> LearnedMeasure:
    tensors = {"p": torch.tensor([0.3, 0.6]).double(), "theta": torch.tensor([0.25, 0.75]).double()}
    return LearnedMeasure(header=_header(**changes), tensors=tensors)


def _weights() -> LearnedMeasure:
    shown = (torch.rand(40, 9, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8)
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    free = Smoothed(length=0.5, noise=0.1).weights(shown, places)
    return LearnedMeasure(header=_header(kind="weights"), tensors={"masks": shown, "weights": free})


# Mixtures and weights as measures.


def test_a_mixture_is_the_sum_of_its_keep_p_measures() -> None:
    def f(y: Tensor) -> Tensor:
        return torch.tanh(y @ torch.arange(1.0, 6).double() - 3) + y[:, 0] * y[:, 1]

    x = torch.ones(5).double()
    whole = integrate(f, mask_families.Mixture(ps=(0.2, 0.7), thetas=(0.4, 0.6), budget=1000), x)
    parts = [integrate(f, mask_families.SignedKeepP(p=p, budget=1000), x).values for p in (0.2, 0.7)]
    assert torch.allclose(whole.values, 0.4 * parts[0] + 0.6 * parts[1], atol=1e-12)
    assert torch.allclose(whole.mass, torch.zeros(5).double(), atol=1e-12)
    runs = torch.stack(
        [
            integrate(f, mask_families.Mixture(ps=(0.2, 0.7), thetas=(0.4, 0.6), budget=24), x, seed=seed).values
            for seed in range(200)
        ]
    )
    assert bool(((runs.mean(0) - whole.values).abs() < 4 * runs.std(0) / 200**0.5 + 0.01).all())


def test_smoothing_weights_are_the_posterior_mean_of_a_gaussian_process() -> None:
    shown = (torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    places = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0)).double()
    weights = Smoothed(length=0.8, noise=0.3).weights(shown, places)
    outputs = shown @ torch.tensor([1.0, 2.0, 0.0, -1.0]).double() + 5
    # In the space of effects: (Z'Z / lambda + C^-1)^-1 Z'F / lambda.
    Z = shown - shown.mean(0)
    C = torch.tensor(
        [[float(torch.exp(-(a - b).square().sum() / (2 * 0.64))) for b in places] for a in places], dtype=torch.float64
    )
    noise = 0.3 * (Z @ C @ Z.T).diagonal().mean()
    direct = torch.linalg.solve(Z.T @ Z / noise + C.inverse(), Z.T @ (outputs - outputs.mean()) / noise)
    assert torch.allclose(weights.T @ outputs, direct, atol=1e-10)
    assert torch.allclose(weights.sum(0), torch.zeros(4).double(), atol=1e-12)
    exact = Smoothed(length=0.01, noise=1e-9).weights(shown, places).T @ outputs
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
        (TENSORS, {"kind": "other"}, "invalid header"),
        (TENSORS, {"version": 2}, "invalid header"),
        (TENSORS, {"extra": 1}, "invalid header"),
        (TENSORS, {"shifts": 0}, "invalid header"),
        ({"p": TENSORS["p"]}, {}, "tensors p and theta, not p"),
        ({**TENSORS, "theta": torch.tensor([0.5, 0.6]).double()}, {}, "must sum to 1"),
        ({**TENSORS, "theta": torch.tensor([1.5, -0.5]).double()}, {}, "not be negative"),
        ({**TENSORS, "theta": torch.tensor([float("nan"), 1.0]).double()}, {}, "not finite"),
        ({**TENSORS, "p": torch.tensor([0.5, 1.0]).double()}, {}, "not between 0 and 1"),
        ({**TENSORS, "p": torch.tensor([0.5]).double()}, {}, "has the shape"),
        ({**TENSORS, "p": torch.tensor([0.3, 0.6])}, {}, "not torch.float64"),
        (
            {"masks": torch.full((2, 3), 7).byte(), "weights": torch.ones(2, 3).double()},
            {"kind": "weights"},
            "other than 0 and 1",
        ),
    ],
)
def test_a_file_that_is_not_a_measure_is_refused(
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
    with pytest.raises(ParameterError, match="not a safetensors file"):
        read_measure(tmp_path / "bomb.safetensors")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(ParameterError, match="there is no measure"):
        read_measure(tmp_path / "none.safetensors")
    _write(tmp_path / "plain.safetensors", TENSORS, None)
    with pytest.raises(ParameterError, match="is not a measure"):
        read_measure(tmp_path / "plain.safetensors")


# The explainer.


def _explain(path: Path, **parameters: Any) -> Any:
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) + 0.5
    return FirstPrinciples(measure=str(path), **parameters).explain(peaked(), image, 1)[0]


def test_a_mixture_explains_as_its_family_does_with_the_settings_it_brings(tmp_path: Path) -> None:
    file = _mixture().save(tmp_path / "my.safetensors")
    found = _explain(file, budget=512)
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) + 0.5
    settings = {"features": "grid:3", "baseline": "black", "output": "logit", "shifts": 1, "smooth": False}
    parts = [
        FirstPrinciples(family="signed_keep_p", p=p, budget=512, **settings).explain(peaked(), image, 1)[0].values
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
    assert first.metadata["forward_passes"] == 40
    assert first.metadata["details"]["exact"]
    assert first.metadata["details"]["stderr_to_spread"] == 0
    noted = _explain(file, tolerance=0.1, sizes="uniform").warnings
    assert [note.partition(" has no effect")[0] for note in noted[:2]] == ["tolerance", "sizes"]
    assert int(first.values[0].argmax()) in {row * SIDE + column for row in range(4, 8) for column in range(4, 8)}


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"family": "shapley"}, r"'family' of FirstPrinciples has no effect with measure=.*only with no measure"),
        ({"p": 0.3}, "'p' of FirstPrinciples has no effect with measure="),
        ({"adjust": False}, "'adjust' of FirstPrinciples has no effect with measure="),
        ({"centre": False}, "'centre' of FirstPrinciples has no effect with measure="),
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
        _weights().family(FamilySettings(count=16, budget=100))
    with pytest.raises(ParameterError, match="has 40 masks, but the budget per grid is 30"):
        _explain(_weights().save(tmp_path / "my.safetensors"), budget=30)


def test_a_measure_of_another_model_warns(tmp_path: Path) -> None:
    found = _explain(_mixture(model="other").save(tmp_path / "my.safetensors"), budget=512)
    assert any("chosen on 'other', not on 'peaked'" in text for text in found.warnings)
