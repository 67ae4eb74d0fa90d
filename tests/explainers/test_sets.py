"""Explainers that return sets of pixels, or several rows at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.toy_explainers import explainer, gradient
from xaihub import (
    Attribution,
    Explainer,
    Explanation,
    Geometry,
    Model,
    PixelSet,
    ResolvedTarget,
    load_image,
)
from xaihub.errors import ExplainerRefused


def each(_self: Explainer, model: Model, inputs: Tensor, target: ResolvedTarget) -> list[Attribution]:
    model(inputs)
    return [
        Attribution(
            values=row[None],
            details={"class": int(target.index[number])},
            warnings=[f"row {number}"],
            extras={f"mask_{number}": row[None, :1] > 0},
            forward_passes=10.0 + number,
        )
        for number, row in enumerate(inputs)
    ]


def brightest(_self: Explainer, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
    """A toy method of a third party: the brightest half of each image."""
    values = target.score(model(inputs))[:, None, None, None] + inputs.mean(1, keepdim=True)
    halves = [row[0] >= row.median() for row in values]
    return Attribution(values=values, sets=[[PixelSet(mask=half, score=0.5, holds=True)] for half in halves])


class TestSets:
    def test_each_row_has_its_own_and_every_consumer_understands_them(
        self, model: Model, inputs: Tensor, tmp_path: Path
    ) -> None:
        found = explainer(brightest).explain(model, inputs)
        for number, one in enumerate(found):
            (half,) = one.sets
            assert torch.equal(half.mask, one.values[0] >= one.values.median())
            assert half.area == pytest.approx(0.5, abs=0.02)
            assert json.loads(json.dumps(one.to_dict()))["sets"][0]["role"] == "sufficient"
            one.save(tmp_path / str(number))
            assert torch.equal(Explanation.load(tmp_path / str(number)).sets[0].mask, half.mask)
            shown = one.with_image(
                load_image(np.zeros((8, 8, 3), np.uint8)),
                Geometry(original=(8, 8), scaled=(8, 8), offset=(0, 0), crop=(8, 8)),
            )
            assert shown.save_sets_png(tmp_path / "sets.png") == tmp_path / "sets.png"

    def test_a_method_without_sets_returns_none(self, model: Model, inputs: Tensor) -> None:
        assert explainer(gradient).explain(model, inputs)[0].sets == ()

    @pytest.mark.parametrize(
        ("sets", "message"),
        [
            ([[]], "one sequence of sets per row"),
            ([PixelSet(mask=torch.ones(8, 8) > 0)] * 3, "one sequence of sets per row"),
            ([[torch.ones(8, 8) > 0]] * 3, "a Tensor instead of a PixelSet"),
            ([[PixelSet(mask=torch.ones(8, 8))]] * 3, r"not a bool tensor of shape \(8, 8\)"),
            ([[PixelSet(mask=torch.ones(1, 8, 8) > 0)]] * 3, r"not a bool tensor of shape \(8, 8\)"),
        ],
    )
    def test_malformed_sets_are_refused(self, model: Model, inputs: Tensor, sets: Any, message: str) -> None:
        with pytest.raises(ExplainerRefused, match=f"Made .*{message}"):
            explainer(lambda *_: Attribution(values=torch.ones(3, 1, 8, 8), sets=sets)).explain(model, inputs)


class TestRowsTogether:
    def test_rows_may_have_records_of_their_own(self, model: Model, inputs: Tensor) -> None:
        found = explainer(each, stochastic=True, together=True).explain(model, inputs, "top2")
        for number, one in enumerate(found):
            assert torch.equal(one.values, inputs[number])
            assert one.metadata["details"] == {"class": one.target.index}
            assert one.warnings == [f"row {number}"]
            assert list(one.extras) == [f"mask_{number}"]
            assert one.metadata["forward_passes"] == 10 + number
            assert one.target.logit == pytest.approx(float(model.predict(inputs)[number, one.target.index]))

    def test_there_must_be_one_for_each_row(self, model: Model, inputs: Tensor) -> None:
        made = explainer(lambda *given: each(*given)[:2], together=True, stochastic=True)
        with pytest.raises(ExplainerRefused, match="returned 2 results for 3 rows"):
            made.explain(model, inputs)
