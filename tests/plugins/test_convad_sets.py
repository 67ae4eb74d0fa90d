"""Sets of pixels that the causal search extracts: sufficient, necessary, disjoint, and minimal up to a cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.plugins.convad_toys import ONE, SIDE, SMALL, Spots, bright, explained, mask_of, model_of, passes
from xaihub import (
    ExplainerRefused,
    ResolvedTarget,
)
from xaihub.masking import Fill, make_removal
from xaihub_convad.baselines import named_removal
from xaihub_convad.explainers import Rex
from xaihub_convad.search.evaluation import Evaluator, Verdicts
from xaihub_convad.search.extraction import Goal, cells, grown, prefix, ranking, shrunk
from xaihub_convad.search.scheduling import run_all


def target_of(index: int) -> ResolvedTarget:
    return ResolvedTarget(index=torch.tensor([index]))


class TestExtraction:
    @pytest.mark.parametrize("confidence", [0.0, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("shrink", [True, False])
    def test_the_set_is_sufficient_in_a_pass_of_its_own(self, confidence: float, shrink: bool) -> None:
        module = Spots(ONE)
        found = explained(module, confidence=confidence, shrink=shrink)
        mask, (one,) = mask_of(found), found.sets
        with torch.inference_mode():
            whole, part = (module(bright()[None] * m).softmax(1)[0, 0] for m in (1.0, torch.from_numpy(mask)))
        assert passes(module, mask)
        assert float(part) >= confidence * float(whole) - 1e-5
        assert one.score == pytest.approx(float(part))
        assert one.area == pytest.approx(mask.mean())
        assert (one.role, one.holds, one.baseline) == ("sufficient", True, "zero")
        assert one.details == {"minimal_to_a_cell": shrink}

    @pytest.mark.parametrize("seed", range(4))
    def test_no_cell_of_a_shrunk_set_can_be_spared(self, seed: int) -> None:
        module = Spots(ONE, (18, 3, 9))
        mask = mask_of(explained(module, seed=seed))
        pieces = cells(mask, 4, np.ones((SIDE, SIDE)))
        assert len(pieces) > 1
        assert np.array_equal(np.sum(pieces, axis=0), mask)
        assert [passes(module, mask & ~piece) for piece in pieces] == [False] * len(pieces)

    def test_shrinking_only_removes_and_also_from_the_whole_image(self) -> None:
        module = Spots(ONE)
        model, image = model_of(module, 16), bright()
        evaluator = Evaluator(model, image, target_of(0), make_removal("zero", model, image))
        whole = np.ones((SIDE, SIDE), bool)
        values = np.random.default_rng(0).random((SIDE, SIDE))
        small, minimal = run_all([(evaluator, shrunk(whole, values, Goal(), side=2))])[0]
        assert minimal
        # 26 of 36 pixels reach 0.7; cells hold 4 of them.
        assert small.sum() == small[8:14, 20:26].sum() == 28

    def test_the_size_is_found_to_a_pixel_where_more_is_better(self) -> None:
        model, image = model_of(Spots((0, 0, SIDE), need=0.3), 16), bright()
        evaluator = Evaluator(model, image, target_of(0), make_removal("zero", model, image))
        order = np.random.default_rng(0).permutation(SIDE * SIDE)
        before = evaluator.rows
        task = grown(lambda n: prefix(order, n, (SIDE, SIDE)), SIDE * SIDE, Goal(), step=1)
        (count,) = run_all([(evaluator, task)])
        assert count == next(n for n in range(SIDE * SIDE) if n / SIDE**2 > 0.3)
        assert evaluator.rows - before <= 16 + 4 * 5

    def test_a_spatial_set_lies_in_a_disc_around_the_peak(self) -> None:
        found = explained(Spots(ONE, (20, 2, 8)), strategy="spatial", radius=2.0)
        rows, columns = np.nonzero(mask_of(found))
        peak = divmod(int(ranking(found.values[0].double().numpy())[0]), SIDE)
        assert passes(Spots(ONE, (20, 2, 8)), mask_of(found))
        assert np.hypot(rows - peak[0], columns - peak[1]).max() < 2 * 1.2**12

    def test_a_contrastive_set_is_sufficient_and_necessary(self) -> None:
        module = Spots(ONE, (20, 2, 8))
        found = explained(module, strategy="contrastive")
        both, enough = mask_of(found), mask_of(found, "sufficient")
        assert (passes(module, both), passes(module, ~both)) == (True, False)
        assert (passes(module, enough), passes(module, ~enough)) == (True, True)
        assert both.sum() > enough.sum()
        for piece in cells(both, 4, np.ones((SIDE, SIDE))):
            assert not passes(module, both & ~piece) or passes(module, ~both | piece)
        assert [(one.role, one.holds) for one in found.sets] == [("contrastive", True), ("sufficient", True)]
        assert found.sets[0].details["necessary"] is True

    def test_a_complete_set_has_the_whole_images_confidence(self) -> None:
        class Against(Spots):
            def forward(self, x: Tensor) -> Tensor:
                logits = super().forward(x)
                return logits - torch.stack([x[:, 0, 28:, :8].mean((1, 2)), *[torch.zeros(len(x))] * 2], 1)

        found = explained(Against(ONE), strategy="complete")
        scores = {one.role: one.score for one in found.sets}
        whole = found.metadata["details"]["confidence"]
        assert abs(scores["complete"] - whole) < 0.005
        assert abs(scores["sufficient"] - whole) > 0.005
        assert list(scores) == ["complete", "contrastive", "sufficient"]
        assert all(one.holds for one in found.sets)
        assert not (mask_of(found, "contrastive") & ~mask_of(found)).any()

    def test_several_sets_share_no_pixel_and_each_is_enough(self) -> None:
        module = Spots(ONE, (20, 2, 8), (2, 2, 7))
        found = explained(module, strategy="multiple", alternatives=5)
        masks = [one.mask.numpy() for one in found.sets]
        assert len(masks) == 3
        assert np.sum(masks, axis=0).max() == 1
        assert [passes(module, mask) for mask in masks] == [True] * 3
        assert found.metadata["details"]["stopped"] == "the remaining pixels are not sufficient"
        assert "only 3 sets were found: the remaining pixels are not sufficient" in found.warnings
        assert len(explained(module, strategy="multiple", alternatives=2).sets) == 2

    def test_equal_pixels_are_ranked_by_their_neighbourhood(self) -> None:
        values = np.zeros((20, 20))
        values[2:6, 2:6], values[3, 3] = 1, 5
        values[15, 15] = 1
        order = ranking(values)
        assert order[0] == 3 * 20 + 3
        assert order[16] == 15 * 20 + 15
        allowed = np.zeros((20, 20), bool)
        allowed[10:] = True
        assert set(ranking(values, allowed).tolist()) == set(range(200, 400))


class TestQuestions:
    def test_a_set_for_another_class_keeps_its_rank(self) -> None:
        found = explained(Spots(ONE), target=1)
        assert any("1 classes score above the target" in warning for warning in found.warnings)
        assert found.sets[0].holds

    def test_a_contrast_is_about_its_two_classes(self) -> None:
        found = explained(Spots(ONE, need=0.7), target="0 vs 2")
        # Class 2 lags by 0.5, so 0.7 - 0.5 / 8 of the spot is enough.
        assert 0.6 * 36 <= mask_of(found)[8:14, 20:26].sum() < 0.7 * 36 + 4
        with pytest.raises(ExplainerRefused, match="does not prefer the first class"):
            explained(Spots(ONE), target="1 vs 0")

    def test_an_answer_that_needs_no_pixel_says_so(self) -> None:
        found = explained(Spots(ONE, need=-1.0), strategy="multiple")
        assert any("kept even with everything masked" in warning for warning in found.warnings)
        assert mask_of(found).sum() == 0
        assert found.metadata["details"]["stopped"] == "no pixel is needed"

    def test_a_set_cannot_be_necessary_where_nothing_is(self) -> None:
        found = explained(Spots(ONE, need=-1.0), strategy="contrastive")
        assert (found.sets[0].holds, found.sets[0].details["necessary"]) == (False, False)
        assert any("not contrastive" in text and "kept without it" in text for text in found.warnings)

    @pytest.mark.parametrize("baseline", ["min", "max", "mean", "zero", "blur", "noise", "inpaint", "constant:0.2"])
    def test_every_baseline_works(self, baseline: str) -> None:
        image = torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.2
        image[0, 0, 8:14, 20:26] = 1
        found = Rex(**SMALL, iterations=3, baseline=baseline).explain(model_of(Spots(ONE), 64), image, 0)[0]
        assert found.metadata["details"]["baseline"] == baseline
        assert found.sets[0].holds

    def test_min_and_max_are_the_extreme_numbers_of_the_input(self) -> None:
        image = torch.randn(1, SIDE, SIDE)
        for name, value in (("min", image.min()), ("max", image.max())):
            made = named_removal(name, model_of(Spots(ONE)), image)
            assert isinstance(made, Fill)
            assert torch.equal(made.baseline, value.expand_as(image))

    def test_verdicts_join_and_pass(self) -> None:
        first = Verdicts(np.array([True, False]), np.array([0.5, 0.9]))
        both = Verdicts.joined([first, Verdicts(np.array([True]), np.array([0.2]))])
        assert both.pass_at(0.3).tolist() == [True, False, False]
        assert len(both[1:]) == 2
