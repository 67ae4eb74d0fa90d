"""Sets of pixels that the causal search extracts: sufficient, necessary, disjoint, and minimal up to a cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.plugins.convad_toys import ONE, SIDE, SMALL, Spots, bright, explained, mask_of, model_of, passes
from xaihub import (
    ExplainerRefused,
    ResolvedTarget,
)
from xaihub.explainers.pixel_set import percent
from xaihub.masking import Fill, make_removal
from xaihub_convad.baselines import named_removal
from xaihub_convad.explainers import Rex
from xaihub_convad.search import extraction
from xaihub_convad.search.evaluation import Evaluator, Verdicts
from xaihub_convad.search.extraction import (
    COARSE,
    Budget,
    Goal,
    cells,
    grown,
    neighbours,
    prefix,
    ranking,
    settled,
    shrunk,
)
from xaihub_convad.search.scheduling import run_all


def target_of(index: int) -> ResolvedTarget:
    return ResolvedTarget(index=torch.tensor([index]))


def on_zeros(module: nn.Module) -> Evaluator:
    model, image = model_of(module, 16), bright()
    return Evaluator(model, image, target_of(0), make_removal("zero", model, image))


class TestExtraction:
    @pytest.mark.parametrize("confidence", [0.0, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("shrink", [0, 1000])
    def test_the_set_is_sufficient_in_a_pass_of_its_own(self, confidence: float, shrink: int) -> None:
        module = Spots(ONE)
        found = explained(module, confidence=confidence, shrink=shrink)
        mask, (one,) = mask_of(found), found.sets
        with torch.inference_mode():
            whole, part = (module(bright()[None] * m).softmax(1)[0] for m in (1.0, torch.from_numpy(mask)))
        assert passes(module, mask)
        assert float(part[0]) >= confidence * float(whole[0]) - 1e-5
        assert (one.score, one.whole) == (pytest.approx(float(part[0])), pytest.approx(float(whole[0])))
        assert one.runner_up == pytest.approx(float(part[1:].max()))
        assert one.area == pytest.approx(mask.mean())
        assert (one.role, one.holds, one.baseline) == ("sufficient", True, "zero")
        assert one.details == {"minimal_to_a_cell": shrink > 0, "kept_if_eroded": True, "kept_if_dilated": True}
        assert [passes(module, other) for other in neighbours(mask)] == [True, True]

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("squares", [[ONE], [ONE, (18, 3, 9)]], ids=["one", "two"])
    def test_no_cell_of_a_shrunk_set_can_be_spared(self, squares: Any, seed: int) -> None:
        module = Spots(*squares)
        evaluator, values = on_zeros(module), np.random.default_rng(seed).random((SIDE, SIDE))
        mask, minimal = run_all([(evaluator, shrunk(np.ones((SIDE, SIDE), bool), values, Goal(), side=2))])[0]
        pieces = cells(mask, 2, values)
        assert minimal
        assert len(pieces) > 1
        assert np.array_equal(np.sum(pieces, axis=0), mask)
        assert [passes(module, mask & ~piece) for piece in pieces] == [False] * len(pieces)

    def test_shrinking_only_removes_and_also_from_the_whole_image(self) -> None:
        evaluator, values = on_zeros(Spots(ONE)), np.random.default_rng(0).random((SIDE, SIDE))
        small, minimal = run_all([(evaluator, shrunk(np.ones((SIDE, SIDE), bool), values, Goal(), side=2))])[0]
        assert minimal
        # 26 of 36 pixels reach 0.7; cells hold 4 of them.
        assert small.sum() == small[8:14, 20:26].sum() == 28

    @pytest.mark.parametrize("rows", [0, 1, 20, 60, 80])
    def test_shrinking_ends_at_its_cap_and_says_that_more_may_go(self, rows: int) -> None:
        evaluator, values = on_zeros(Spots(ONE)), np.random.default_rng(0).random((SIDE, SIDE))
        before = evaluator.rows
        task = shrunk(np.ones((SIDE, SIDE), bool), values, Goal(), side=2, budget=Budget(rows))
        mask, minimal = run_all([(evaluator, task)])[0]
        assert evaluator.rows - before <= rows
        assert not minimal
        assert passes(Spots(ONE), mask)
        assert (mask.sum() < 0.5 * SIDE**2) == (rows >= 60)

    def test_coarse_blocks_first_need_fewer_passes_than_cells_alone(self) -> None:
        values = np.random.default_rng(0).random((SIDE, SIDE))
        start = np.ones((SIDE, SIDE), bool)

        def cost(steps: tuple[int, ...]) -> int:
            evaluator = on_zeros(Spots(ONE))
            before = evaluator.rows
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(extraction, "COARSE", steps)
                mask, minimal = run_all([(evaluator, shrunk(start, values, Goal(), side=2))])[0]
            assert (mask.sum(), minimal) == (28, True)
            return evaluator.rows - before

        assert cost(COARSE) < cost((1,)) / 2

    def test_all_sets_of_an_image_share_the_cap(self) -> None:
        for strategy in ("global", "contrastive", "complete"):
            none, some = (
                explained(Spots(ONE, (20, 2, 8)), strategy=strategy, shrink=rows).metadata["forward_passes"]
                for rows in (0, 50)
            )
            assert none < some <= none + 50 + 18  # each of up to three margins is evaluated in three or four passes

    def test_a_set_gets_the_margin_with_which_it_survives_the_loss_of_a_pixel(self) -> None:
        for need in (0.6, 0.8, 0.99):
            module = Spots((8, 8, 16), need=need)
            mask = mask_of(explained(module))
            assert [passes(module, other) for other in (mask, *neighbours(mask))] == [True] * 3
            assert not mask.all()

    def test_the_next_margin_is_tried_where_the_first_does_not_do(self) -> None:
        class Ring(Spots):
            """Loses the class where the pixels right beside the square are visible and those beyond are not."""

            def forward(self, x: Tensor) -> Tensor:
                logits = super().forward(x)
                rival = 40 * (x[:, 0, 7, 19:27].mean(1) - x[:, 0, 6, 18:28].mean(1))
                return torch.stack([logits[:, 0], rival, logits[:, 2]], 1)

        core = np.zeros((SIDE, SIDE), bool)
        core[8:14, 20:26] = True
        whole = np.ones_like(core)
        mask = run_all([(on_zeros(Ring(ONE)), settled(core, Goal(), whole))])[0]
        assert mask.sum() == 12 * 12  # a margin of 3 pixels: with 2, losing one of them loses the class
        assert np.array_equal(run_all([(on_zeros(Ring(ONE)), settled(core, Goal(), whole, Budget(2)))])[0], core)

    def test_a_set_that_falls_at_the_loss_of_a_pixel_is_noted(self) -> None:
        class Fragile(Spots):
            """Needs the outermost pixels of the image."""

            def forward(self, x: Tensor) -> Tensor:
                rim = torch.cat([x[:, 0, 0], x[:, 0, -1], x[:, 0, :, 0], x[:, 0, :, -1]], 1).mean(1)
                return torch.stack([8 * (rim - 0.9), torch.zeros_like(rim)], 1)

        found = explained(Fragile())
        (one,) = found.sets
        assert (one.holds, one.details["kept_if_eroded"], one.details["kept_if_dilated"]) == (True, False, True)
        assert "the class changes if the sufficient set is eroded by one pixel" in found.warnings

    def test_a_set_that_keeps_little_is_noted_with_both_numbers(self) -> None:
        class Many(nn.Module):
            """The spot's class leads by a hair of 40 classes long before it is certain."""

            def forward(self, x: Tensor) -> Tensor:
                spot = x[:, 0, 8:24, 8:24].mean((1, 2))[:, None]
                return torch.cat([10 * spot, torch.full((len(x), 40), 0.5)], 1)

        found = explained(Many())
        (one,) = found.sets
        assert one.score < 0.1 * one.whole
        assert one.claim.endswith(f"{percent(one.score)} of 100 %, runner-up {percent(one.runner_up)}")
        noted = f"the sufficient set keeps less than a tenth of the confidence ({one.claim}); raise confidence"
        assert noted in found.warnings
        assert not any("tenth" in text for text in explained(Many(), confidence=0.5).warnings)

    def test_the_size_is_found_to_a_pixel_where_more_is_better(self) -> None:
        evaluator = on_zeros(Spots((0, 0, SIDE), need=0.3))
        order = np.random.default_rng(0).permutation(SIDE * SIDE)
        before = evaluator.rows
        task = grown(lambda n: prefix(order, n, (SIDE, SIDE)), SIDE * SIDE, Goal())
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
        values = found.values[0].double().numpy()
        goal = Goal(necessary=True)
        core, minimal = run_all([(on_zeros(module), shrunk(np.ones((SIDE, SIDE), bool), values, goal, side=4))])[0]
        assert minimal
        for piece in cells(core, 4, values):
            assert not passes(module, core & ~piece) or passes(module, ~core | piece)
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
        assert any("no further set was found: the remaining pixels are not" in text for text in found.warnings)
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
        # Class 2 lags by 0.5, so 0.7 - 0.5 / 8 of the spot is enough; cells and a margin come on top.
        assert 0.6 * 36 <= mask_of(found)[8:14, 20:26].sum() < 36
        assert found.sets[0].runner_up is None
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
        first = Verdicts(np.array([True, False]), np.array([0.5, 0.9]), np.array([0.4, 0.05]))
        both = Verdicts.joined([first, Verdicts(np.array([True]), np.array([0.2]), np.array([np.nan]))])
        assert both.pass_at(0.3).tolist() == [True, False, False]
        assert len(both[1:]) == 2
