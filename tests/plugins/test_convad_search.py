"""The causal search: against a literal second implementation, and on images whose evidence is planted."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.plugins.convad_toys import ONE, SIDE, Spots, bright, explained, mask_of, model_of, passes
from xaihub import (
    Explanation,
    ParameterError,
    ResolvedTarget,
    get_explainer,
    load_image,
    load_model,
    sample_photo,
)
from xaihub.masking import make_removal
from xaihub.testing.cost import announced
from xaihub_convad import xaihub_register_explainers
from xaihub_convad.baselines import named_removal
from xaihub_convad.search.evaluation import Evaluator
from xaihub_convad.search.extraction import neighbours
from xaihub_convad.search.partition import SUBSETS, Box, Cuts, mutants, painted, split
from xaihub_convad.search.responsibility import responsibilities, search
from xaihub_convad.search.scheduling import Task, combined, run_all


class TestPartitions:
    def test_four_boxes_cover_a_box_once(self) -> None:
        rng = np.random.default_rng(0)
        for shape in [(2, 2), (3, 9), (31, 2), (20, 30)] * 20:
            box = Box(4, 5, 4 + shape[0], 5 + shape[1])
            parts = split(box, rng)
            count = sum(painted((40, 40), [part]).astype(int) for part in parts)
            assert np.array_equal(count, painted((40, 40), [box]).astype(int))
            assert min(part.area for part in parts) > 0

    def test_cuts_are_uniform(self) -> None:
        rng = np.random.default_rng(0)
        cuts = np.bincount([split(Box(0, 0, 11, 11), rng)[0].bottom for _ in range(5000)], minlength=12)
        assert cuts[[0, 11]].tolist() == [0, 0]
        assert np.abs(cuts[1:11] - 500).max() < 100

    def test_cuts_of_many_searches_are_spread_more_evenly_than_independent_ones(self) -> None:
        box = Box(0, 0, 1001, 1001)

        def unevenness(draws: list[Any]) -> float:
            """The largest gap between a corner's fraction of 60 cuts and its area."""
            points = np.array([[(part := split(box, rng)[0]).bottom, part.right] for rng in draws]) / 1001
            corners = np.linspace(0.1, 1, 10)
            shares = [[np.mean((points[:, 0] <= y) & (points[:, 1] <= x)) - y * x for x in corners] for y in corners]
            return float(np.abs(shares).max())

        even = [unevenness([Cuts(seed, number) for number in range(60)]) for seed in range(8)]
        independent = [unevenness([np.random.default_rng([seed, n]) for n in range(60)]) for seed in range(8)]
        assert max(even) < np.mean(independent)
        assert np.mean(even) < 0.6 * np.mean(independent)

    def test_one_search_alone_draws_like_any_other_generator(self) -> None:
        drawn = np.array([[Cuts(seed, 3).integers(2, 12) for _ in range(1)] for seed in range(4000)])
        assert np.abs(np.bincount(drawn.ravel(), minlength=12)[2:] - 400).max() < 80
        rng = Cuts(0, 0)
        later = np.array([rng.integers(0, 10) for _ in range(4000)])[4:]
        assert np.abs(np.bincount(later, minlength=10) - 400).max() < 80

    def test_there_are_fourteen_mutants_and_they_are_all_different(self) -> None:
        background = painted((12, 12), [Box(0, 0, 2, 12)])
        parts = split(Box(2, 0, 12, 12), np.random.default_rng(1))
        found = mutants(background, parts)
        expected = {
            (background | painted((12, 12), shown)).tobytes()
            for count in (1, 2, 3)
            for shown in itertools.combinations(parts, count)
        }
        assert len(found) == len(expected) == 14
        assert {mask.tobytes() for mask in found} == expected


def table_of(passed: NDArray[np.bool_]) -> dict[frozenset[int], bool]:
    """Return whether each set of visible parts passes, given the 14 mutants."""
    sets = [frozenset(np.flatnonzero(row).tolist()) for row in SUBSETS]
    return dict(zip(sets, map(bool, passed), strict=True)) | {frozenset(): False, frozenset(range(4)): True}


def literal_responsibility(passed: dict[frozenset[int], bool], part: int) -> float:
    """Definition: 1 / (1 + k), k the fewest others hidden in a mutant that passes and fails without `part`."""
    everything = frozenset(range(4))
    depths = [
        len(hidden)
        for count in range(4)
        for hidden in map(frozenset, itertools.combinations(everything - {part}, count))
        if passed[everything - hidden] and not passed[everything - hidden - {part}]
    ]
    return 1 / (1 + min(depths)) if depths else 0.0


def outcome_of(passed: NDArray[np.bool_], *, nothing: bool = False) -> dict[int, bool]:
    return dict(enumerate([nothing, *map(bool, passed), True]))


class TestResponsibilityOfParts:
    @pytest.mark.parametrize("seed", range(12))
    def test_it_equals_its_definition_taken_literally(self, seed: int) -> None:
        passed = np.random.default_rng(seed).random(14) < 0.5
        found, open_subsets = responsibilities(outcome_of(passed))
        assert found.tolist() == [literal_responsibility(table_of(passed), part) for part in range(4)]
        assert not open_subsets

    def test_it_is_known_from_the_subsets_that_are_asked_for(self) -> None:
        """Whatever the outcomes are, however unlikely."""
        asked = {}
        for code in range(0, 2**14, 17):
            outcome = outcome_of(np.array([bool(code >> bit & 1) for bit in range(14)]))
            known = {0: outcome[0], 15: True}
            while wanted := responsibilities(known)[1]:
                assert not wanted & known.keys()
                known |= {subset: outcome[subset] for subset in wanted}
            assert responsibilities(known)[0].tolist() == responsibilities(outcome)[0].tolist()
            asked[code] = len(known) - 2
        assert max(asked.values()) <= 14
        assert asked[0] == 4  # nothing less than all four parts passes, so every part is fully responsible

    def test_a_part_that_alone_decides_is_fully_responsible(self) -> None:
        assert responsibilities(outcome_of(SUBSETS[:, 2]))[0].tolist() == [0, 0, 1, 0]

    def test_parts_that_stand_in_for_each_other_share_responsibility(self) -> None:
        assert responsibilities(outcome_of(SUBSETS[:, 0] | SUBSETS[:, 1]))[0].tolist() == [0.5, 0.5, 0, 0]

    def test_where_nothing_is_needed_nothing_is_responsible(self) -> None:
        assert responsibilities(outcome_of(np.ones(14, bool), nothing=True))[0].tolist() == [0, 0, 0, 0]


def literal_search(module: nn.Module, splits: int, rng: Cuts) -> NDArray[np.float64]:
    """One search by the rules, one forward pass and one pixel at a time."""
    values = np.zeros((SIDE, SIDE))
    shown, refused = [Box(0, 0, SIDE, SIDE)], set()
    for _ in range(splits):
        able = [box for box in shown if box not in refused]
        able = [box for box in able if box.bottom - box.top > 1 and box.right - box.left > 1]
        able = [box for box in able if box.area >= 10]
        if not able:
            break
        largest = max(able, key=lambda box: box.area)
        others = [box for box in shown if box is not largest]
        kids = split(largest, rng)
        passing, passed = [], np.zeros(14, bool)
        for code in range(1, 15):
            subset = [kid for bit, kid in enumerate(kids) if code & (1 << bit)]
            mask = np.zeros((SIDE, SIDE), bool)
            for box in [*others, *subset]:
                for row in range(box.top, box.bottom):
                    mask[row, box.left : box.right] = True
            if passes(module, mask):
                passing.append(subset)
                passed[code - 1] = True
        for part, kid in enumerate(kids):
            values[kid.top : kid.bottom, kid.left : kid.right] += literal_responsibility(table_of(passed), part)
        if passing:
            best = min(passing, key=lambda subset: sum(box.area for box in subset))
            shown = [box for box in others if box not in refused] + best + [b for b in others if b in refused]
        else:
            refused.add(largest)
    return values


class TestSearch:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("squares", [[ONE], [ONE, (20, 2, 8)]], ids=["one", "two"])
    def test_the_map_equals_a_search_of_one_mask_at_a_time(self, squares: Any, seed: int) -> None:
        module = Spots(*squares)
        found = explained(module, seed=seed, iterations=3, refinements=6)
        torch.manual_seed(seed)
        base = int(torch.randint(2**62, ()))
        maps = [literal_search(module, 6, Cuts(base, number)) for number in range(3)]
        assert np.mean(maps, axis=0).max() > 0
        assert np.abs(found.values[0].numpy() - np.mean(maps, axis=0)).max() < 1e-6
        assert found.extras["standard_error"][0].numpy() == pytest.approx(np.std(maps, axis=0, ddof=1) / 3**0.5)

    def test_planted_evidence_is_found(self) -> None:
        heat = explained(Spots(ONE), iterations=12).values[0]
        assert heat[8:14, 20:26].mean() > 2 * heat.mean()
        row, column = divmod(int(heat.argmax()), SIDE)
        assert (8 <= row <= 13, 20 <= column <= 25) == (True, True)

    def test_where_every_part_is_needed_all_are_fully_responsible(self) -> None:
        whole = Spots((0, 0, SIDE), need=0.9995)
        found = explained(whole, iterations=3, shrink=0)
        assert found.values.unique().tolist() == [1]
        assert mask_of(found).all()

    def test_boxes_beside_the_split_one_stay_visible(self) -> None:
        class Both(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                lowest = torch.minimum(x[:, 0, 2:6, 2:6].mean((1, 2)), x[:, 0, 26:30, 26:30].mean((1, 2)))
                return torch.stack([lowest, torch.full_like(lowest, 0.95)], 1)

        model, image = model_of(Both(), 16), bright()
        evaluator = Evaluator(model, image, target_of(0), make_removal("zero", model, image))
        (ended,) = run_all([(evaluator, search((SIDE, SIDE), np.random.default_rng(0), refinements=40))])
        shown = painted((SIDE, SIDE), ended.boxes)
        assert shown[2:6, 2:6].all()
        assert shown[26:30, 26:30].all()
        assert shown.mean() < 0.5
        assert evaluator.alone(shown).keeps[0]

    def test_the_number_of_splits_and_the_budget_end_a_search(self) -> None:
        def refinements(**values: Any) -> int:
            return int(explained(Spots(ONE), iterations=2, shrink=0, **values).metadata["details"]["refinements"])

        assert refinements(refinements=3) == 6
        assert refinements(refinements=50, budget=94) == 4
        assert refinements(refinements=50, budget=28) == 1
        with pytest.raises(ParameterError, match="budget=27 does not cover one split and one set"):
            refinements(budget=27)

    @pytest.mark.parametrize("strategy", ["global", "spatial", "contrastive", "complete", "multiple"])
    @pytest.mark.parametrize("budget", [28, 59, 90, 200, 400])
    def test_a_budget_covers_the_search_and_the_sets(self, strategy: str, budget: int) -> None:
        module = Spots(ONE, (20, 2, 8))
        values: dict[str, Any] = {"strategy": strategy}
        if strategy == "multiple":
            values["alternatives"] = {28: 1, 59: 2}.get(budget, 3)
        if strategy == "spatial":
            values["radius"] = 2.0
        found = explained(module, budget=budget, **values)
        assert found.metadata["forward_passes"] <= budget
        assert [(one.holds, one.area > 0) for one in found.sets] == [(True, True)] * len(found.sets)

    @pytest.mark.parametrize("strategy", ["global", "spatial", "contrastive", "complete", "multiple"])
    @pytest.mark.parametrize("cell", [1, 4])
    def test_the_declared_cost_is_an_upper_bound(self, strategy: str, cell: int) -> None:
        (spec,) = (one for one in xaihub_register_explainers() if one.name == "rex")
        for need in (0.3, 0.7, 0.95):
            module = Spots(ONE, (20, 2, 8), (0, 0, 32), need=need)
            own = {"radius": 1.0} if strategy == "spatial" else {"alternatives": 3} if strategy == "multiple" else {}
            found = explained(module, strategy=strategy, cell=cell, confidence=0.5, iterations=2, shrink=60, **own)
            bound = announced(spec.cost, found.metadata["parameters"])
            assert bound == 14 * 2 * 4 + 60 + 100
            bound += 200 if strategy in ("contrastive", "complete") else 0
            bound *= 3 if strategy == "multiple" else 1
            assert found.metadata["forward_passes"] <= bound

    def test_a_split_costs_fourteen_passes_at_most_and_all_are_counted(self) -> None:
        found = explained(Spots(ONE), iterations=5)
        details = found.metadata["details"]
        assert 4 * details["refinements"] + 2 <= details["forward_passes_search"] < 14 * details["refinements"] + 2
        assert (
            found.metadata["forward_passes"] == details["forward_passes_search"] + details["forward_passes_extraction"]
        )


def target_of(index: int) -> ResolvedTarget:
    return ResolvedTarget(index=torch.tensor([index]))


class TestQueue:
    def test_batches_are_full_although_tasks_ask_for_little(self) -> None:
        seen: list[int] = []

        class Counting(Spots):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(len(x))
                return super().forward(x)

        model, image = model_of(Counting(ONE), 10), bright()
        evaluator = Evaluator(model, image, target_of(0), make_removal("zero", model, image))

        def task(number: int) -> Task[tuple[int, list[bool]]]:
            heard = []
            for size in (1, 3, 2):
                masks = np.zeros((size, SIDE, SIDE), bool)
                masks[:, : number + 1] = True
                verdicts = yield masks
                heard += verdicts.keeps.tolist()
            return number, heard

        seen.clear()
        results = run_all([(evaluator, task(number)) for number in range(30)])
        assert [number for number, _ in results] == list(range(30))
        # Rows 0 to `number` are shown; the spot's mean passes 0.7 with 5 of its 6 rows, 8 to 12.
        assert [heard for _, heard in results] == [[number >= 12] * 6 for number in range(30)]
        assert sum(seen) == 30 * 6
        assert len(seen) <= 30 * 6 / 10 + 2

    def test_a_task_that_asks_nothing_is_done(self) -> None:
        model, image = model_of(Spots(ONE), 4), bright()
        evaluator = Evaluator(model, image, target_of(0), make_removal("zero", model, image))

        def silent() -> Task[str]:
            return "done"
            yield np.zeros((0, SIDE, SIDE), bool)

        assert run_all([(evaluator, silent()), (evaluator, silent())]) == ["done", "done"]
        assert run_all([(evaluator, combined([silent(), silent()]))]) == [["done", "done"]]


def test_sets_are_saved_with_the_map(tmp_path: Any) -> None:
    found = explained(Spots(ONE), iterations=2, strategy="contrastive")
    found.save(tmp_path / "x")
    loaded = Explanation.load(tmp_path / "x").sets
    assert [torch.equal(one.mask, two.mask) for one, two in zip(loaded, found.sets, strict=True)] == [True, True]
    assert [one.to_dict() for one in loaded] == [one.to_dict() for one in found.sets]


@pytest.mark.parametrize(("name", "baseline"), [("rex", "zero"), ("convad", "deactivate_most")])
def test_each_explainer_is_registered_and_hides_pixels_its_own_way(name: str, baseline: str) -> None:
    model = load_model("efficientnet_lite0", device="cpu")
    explainer = get_explainer(name, iterations=1, refinements=1, shrink=0)
    image = torch.randn(model.input_size, generator=torch.Generator().manual_seed(0))
    found = explainer.explain(model, image[None])[0]
    (one,) = found.sets
    with torch.inference_mode():
        logits = make_removal(baseline, model, image)(model, image, one.mask[None, None].float())
    assert found.metadata["details"]["baseline"] == one.baseline == baseline
    assert float(logits.softmax(1)[0, found.target.index]) == pytest.approx(one.score, abs=1e-5)
    assert int(logits.argmax()) == found.target.index
    assert one.holds


def test_parameters_without_effect_are_refused() -> None:
    for values in ({"radius": 9.0}, {"alternatives": 2}, {"strategy": "multiple", "radius": 9.0}):
        with pytest.raises(ParameterError, match="has no effect"):
            explained(Spots(ONE), **values)


@pytest.mark.parametrize("name", [pytest.param("rex", marks=pytest.mark.slow), "convad"])  # of one search
def test_a_default_set_keeps_half_of_the_confidence_and_survives_a_pixel(name: str, tmp_path: Any) -> None:
    model = load_model("efficientnet_lite0", device="cpu")
    image, _ = model.prepare(load_image(sample_photo()).rgb)
    get_explainer(name).explain(model, image[None])[0].save(tmp_path / "x")
    found = Explanation.load(tmp_path / "x")
    (one,) = found.sets
    masks = torch.from_numpy(np.stack([one.mask.numpy(), *neighbours(one.mask.numpy())])).float().unsqueeze(1)
    with torch.inference_mode():
        logits = named_removal(one.baseline or "", model, image)(model, image, masks)
    assert logits.argmax(1).tolist() == [found.target.index] * 3
    assert float(logits.softmax(1)[0, found.target.index]) >= 0.5 * found.target.probability - 1e-5
    assert one.whole == pytest.approx(found.target.probability, abs=1e-5)
    assert [text for text in found.warnings if "set" in text] == []
    assert found.metadata["forward_passes"] <= 14 * 10 * 2 + 100 + 100
