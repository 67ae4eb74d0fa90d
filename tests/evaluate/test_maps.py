"""Stored maps: whole, in half precision, at the size of their grid, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tests.evaluate.toys import CALLS, config
from xaihub import ClassScore, Explanation
from xaihub.evaluation.maps import MapKind
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.results import Key
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub

KEY = Key(
    image="ab" * 32, model="toy", weights="w", preprocessing={}, explainer="toy", parameters={}, target="None", seed=0,
    code="1",
)  # fmt: skip
SCORE = ClassScore(index=1, name="cat", logit=2.0, probability=0.7)
CELLS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
UPSAMPLED = interpolate(CELLS[None, None], size=(56, 35), mode="bilinear", align_corners=False)[0]
REPEATED = CELLS[None].repeat_interleave(8, -2).repeat_interleave(7, -1)


def explanation(values: Tensor, **extras: Tensor) -> Explanation:
    return Explanation(values=values, target=SCORE, predicted=SCORE, extras=extras)


def stored(store: RunStore, made: Explanation, maps: MapKind, *, exact: bool = True) -> tuple[Explanation | None, int]:
    store.add_explanation(KEY, "cat.jpg", made, maps=maps)
    return store.explanation(KEY, exact=exact), sum(file.stat().st_size for file in store.folder.glob("maps/*/*"))


@pytest.mark.parametrize("maps", ["f32", "f16"])
@pytest.mark.parametrize(
    "made",
    [
        explanation(UPSAMPLED, cells=CELLS),
        explanation(REPEATED),
        explanation(torch.ones(1, 56, 35)),
        explanation(torch.stack([REPEATED[0], -REPEATED[0], 0 * REPEATED[0]])),
    ],
    ids=["upsampled", "repeated", "constant", "three channels"],
)
def test_maps_of_cells_are_stored_at_the_size_of_their_grid_bit_for_bit(
    store: RunStore, made: Explanation, maps: MapKind
) -> None:
    back, size = stored(store, made, maps)
    assert back is not None
    assert torch.equal(back.values, made.values)
    assert size < 1000 < made.values.numel()


@pytest.mark.parametrize(
    "made",
    [
        explanation(UPSAMPLED),
        explanation(UPSAMPLED + 1e-6, cells=CELLS),
        explanation(UPSAMPLED, cells=CELLS[None]),
        explanation(REPEATED.roll((3, 3), (-2, -1))),
    ],
    ids=["no cells", "other values", "other shape", "shifted"],
)
def test_any_other_map_is_stored_whole(store: RunStore, made: Explanation) -> None:
    back, size = stored(store, made, "f32")
    assert back is not None
    assert torch.equal(back.values, made.values)
    assert size > 4 * 56 * 35


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_half_precision_is_for_viewing_and_never_for_scoring(store: RunStore, scale: float) -> None:
    made = explanation(torch.randn(1, 32, 32) * scale)
    back, size = stored(store, made, "f16", exact=False)
    assert back is not None
    assert float((back.values - made.values).abs().max()) <= 2**-11 * float(made.values.abs().max())
    assert size < 3 * 32 * 32
    assert store.explanation(KEY) is None


@pytest.mark.parametrize(("maps", "again"), [("f32", 0), ("f16", 4), ("none", 4)])
def test_scores_that_are_added_later_are_those_of_the_map_itself(
    hub: Hub, photos: Path, tmp_path: Path, maps: MapKind, again: int
) -> None:
    found = {}
    for folder, steps in (("whole", [["toy_mean", "toy_drawn"]]), ("later", [["toy_mean"], ["toy_mean", "toy_drawn"]])):
        with RunStore(tmp_path / folder, create=True) as store:
            for metrics in steps:
                CALLS.clear()
                evaluate(hub, make_plan(hub, config(photos, metrics=metrics, maps=maps, controls=False)), store)
            found[folder] = [(row.metric, row.value) for row in store.rows()]
    assert found["whole"] == found["later"]
    assert CALLS.count("explain") == again


def test_a_record_with_a_map_of_impossible_size_is_lost(store: RunStore) -> None:
    from safetensors.torch import save_file

    store.add_explanation(KEY, "cat.jpg", replace(explanation(UPSAMPLED, cells=CELLS)))
    for note in ({"size": "99999999x9999"}, {"repeat": "99999x99999"}, {"size": "x"}, {"size": "-7x-5"}):
        save_file({"values": CELLS[None].clone(), "extras.cells": CELLS}, store.map_file(KEY.digest), note)
        assert store.explanation(KEY) is None
