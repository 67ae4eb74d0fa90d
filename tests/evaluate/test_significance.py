"""Paired tests of a leaderboard: against scipy called literally, an analytic case, and scores that are equal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from xaihub import hookimpl
from xaihub.cli._output import put_board
from xaihub.evaluation.columns import Column
from xaihub.evaluation.leaderboard import Leaderboard, boards
from xaihub.evaluation.results import ScoreRow
from xaihub.evaluation.significance import differences, holm, images_needed, p_text, p_value, paired_differences
from xaihub.evaluation.tables import board_table, findings
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.specs import MetricSpec


def literal_holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979: step down from the smallest; each takes the largest corrected value so far."""
    found, largest = [0.0] * len(p_values), 0.0
    for step, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[place]))
        found[place] = largest
    return found


def column(values: Any, metric: str = "insertion") -> Column:
    table = np.array(values, dtype=float)
    return Column(metric, metric, table, np.full(len(table), table.shape[1]), [*map(str, range(table.shape[1]))])


def test_every_pair_is_tested_as_scipy_and_holm_say() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(5, 30)) + np.array([0.0, 0.1, 0.4, 0.8, 1.5])[:, None]
    values[1, :4] = np.nan
    names = ["a", "b", "c", "d", "e"]
    found = differences(column(values), names)
    pairs = [*combinations(range(5), 2)]
    shared = [~np.isnan(values[i]) & ~np.isnan(values[j]) for i, j in pairs]
    raw = [float(wilcoxon(values[i][own], values[j][own]).pvalue) for (i, j), own in zip(pairs, shared, strict=True)]
    assert [one.p for one in found] == pytest.approx(literal_holm(raw))
    assert [(one.first, one.second) for one in found] == [*combinations(names, 2)]
    assert [one.count for one in found] == [int(own.sum()) for own in shared]
    means = [float((values[i] - values[j])[own].mean()) for (i, j), own in zip(pairs, shared, strict=True)]
    assert [one.mean for one in found] == pytest.approx(means)
    assert {one.comparisons for one in found} == {10}
    assert 0 < sum(one.significant for one in found) < 10


def test_holm_corrects_as_its_definition_says() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    values = np.random.default_rng(1).uniform(size=40) ** 3
    assert holm(values.tolist()) == pytest.approx(literal_holm(values.tolist()))


@pytest.mark.parametrize("count", [1, 5, 6, 12])
def test_differences_of_one_sign_have_the_exact_p_value(count: int) -> None:
    ahead = np.random.default_rng(2).uniform(0.1, 1, size=count)
    assert p_value(ahead) == pytest.approx(2.0 ** (1 - count))
    assert p_value(-ahead) == pytest.approx(2.0 ** (1 - count))


@pytest.mark.parametrize("count", [8, 50, 51, 200])
def test_p_values_are_those_of_scipy(count: int) -> None:
    changes = np.random.default_rng(count).normal(size=count) + 0.5
    assert p_value(changes) == pytest.approx(wilcoxon(changes).pvalue)


def test_ties_have_the_exact_p_value_of_all_signs() -> None:
    tied = np.array([1, 1, -1, 2, 2, -1, 3, 1.0])
    ranks = rankdata(np.abs(tied))
    observed = ranks[tied > 0].sum()
    sums = [ranks[np.array(signs) > 0].sum() for signs in product((-1, 1), repeat=len(tied))]
    assert p_value(tied) == pytest.approx(2 * np.mean([one >= observed for one in sums]))
    many = np.random.default_rng(9).integers(-2, 4, size=400).astype(float)
    assert p_value(many) == pytest.approx(wilcoxon(many).pvalue)


@pytest.mark.parametrize("comparisons", [1, 6, 105])
def test_fewer_images_than_needed_never_give_a_significant_difference(comparisons: int) -> None:
    needed = images_needed(comparisons)
    assert comparisons * 2.0 ** (1 - needed) < 0.05 <= comparisons * 2.0 ** (2 - needed)


def test_equal_scores_do_not_differ_nor_do_those_that_differ_by_rounding() -> None:
    scores = np.random.default_rng(3).uniform(size=40)
    assert p_value(scores - scores) == 1
    rounded = paired_differences(scores * (1 + 2e-7), scores)
    assert not rounded.any()
    assert p_value(rounded) == 1
    assert paired_differences(np.full(3, np.nan), scores[:3]).shape == (0,)


def test_ranks_that_contradict_the_mean_are_no_evidence() -> None:
    skewed = np.array([*np.linspace(0.01, 0.02, 30), -5.0])  # 30 small gains and one large loss
    assert wilcoxon(skewed).pvalue < 0.001
    assert skewed.mean() < 0
    assert p_value(skewed) > 0.9


def test_among_equal_methods_one_difference_in_twenty_boards_is_significant() -> None:
    generator = np.random.default_rng(4)
    wrong = sum(
        any(one.significant for one in differences(column(generator.normal(size=(4, 20))), [*"abcd"]))
        for _ in range(100)
    )
    assert wrong <= 10


def test_p_values_are_written_as_journals_do() -> None:
    assert [p_text(0.0031), p_text(0.00001), p_text(1.0), p_text(0.04, sign="≤")] == [
        "p = .003", "p < .001", "p = 1.000", "p ≤ .040",
    ]  # fmt: skip


class Metrics:
    """A higher-is-better and a cost metric."""

    @hookimpl
    def xaihub_register_metrics(self) -> list[MetricSpec]:
        return [
            MetricSpec(name="insertion", target="", higher_is_better=True),
            MetricSpec(name="deletion", target="", higher_is_better=False),
            MetricSpec(name="cost_seconds", target="", higher_is_better=False),
        ]


def board(scores: dict[str, Any], metrics: Sequence[str] = ("insertion",)) -> Leaderboard:
    host = PluginHost(entry_points=[])
    host.register(Metrics(), name="metrics")
    blank: Any = {
        "model": "m", "explainer_parameters": {}, "metric_parameters": {}, "curve": None, "details": {},
        "forward_passes": 0, "backward_passes": 0, "seconds": 0.0, "key": "", "record": {}, "error": None,
    }  # fmt: skip
    rows = [
        ScoreRow(**blank, image=f"{place:03d}", explainer=name, control=name == "chance", metric=metric, value=value)
        for metric in metrics
        for name, values in scores.items()
        for place, value in enumerate(values)
    ]
    (found,) = boards(rows, Hub(host))
    return found


@pytest.fixture(scope="module")
def scored() -> Leaderboard:
    generator = np.random.default_rng(5)
    base = generator.normal(size=12)
    near = base - generator.normal(size=12) * 0.3
    return board(
        {"rise": base + 1, "lime": near + 1.01 - (near - base).mean() - 0.05, "gradcam": base, "chance": base - 1},
        ["insertion", "deletion", "cost_seconds"],
    )


def test_a_leaderboard_marks_what_the_test_does_not_distinguish_from_the_best(scored: Leaderboard) -> None:
    entries = {name: scored.entries[name, "insertion"] for name in scored.explainers}
    assert entries["rise"].best
    assert entries["rise"].p is None
    assert entries["lime"].near_best
    assert not entries["gradcam"].near_best
    assert entries["gradcam"].p == pytest.approx(6 * 2.0**-11)
    assert scored.entries["rise", "cost_seconds"].p is None  # every map costs what it costs
    assert {one.metric for one in scored.differences} == {"insertion", "deletion"}
    frame = scored.to_frame().set_index(["metric", "explainer"])
    assert frame.loc[("insertion", "gradcam"), "p"] == entries["gradcam"].p
    rows = scored.to_dict()
    assert {row["explainer"]: row["p"] for row in rows["rows"] if row["metric"] == "insertion"}["rise"] is None
    assert set(rows["differences"][0]) == {"metric", "first", "second", "mean", "count", "p", "comparisons"}


def test_the_best_method_is_compared_in_words(scored: Leaderboard) -> None:
    text = findings([scored])[0]
    assert text == (
        "rise has the best mean insertion (0.948); it is better than gradcam and chance (p ≤ .003)"
        " and not distinguishable from lime (paired by image, corrected for 6 comparisons)."
    )
    spaced = board({"rise masks=9": np.arange(3), "b": np.zeros(3)})
    assert findings([spaced])[0].startswith("rise masks=9 has the best mean")  # a name keeps its spelling
    down = next(text for text in findings([scored]) if "best mean deletion" in text)
    assert down.startswith("gradcam has the best mean deletion")
    assert "better than lime and rise" in down
    assert "worse than chance" in down


def test_pages_list_every_pair_in_words(scored: Leaderboard) -> None:
    pairs = board_table(scored)["pairs"]
    assert {(row["metric"], row["text"]) for row in pairs} >= {
        ("insertion", "rise is better than gradcam"), ("deletion", "gradcam is better than rise"),
        ("insertion", "lime and rise are not distinguishable"),
    }  # fmt: skip
    assert len(pairs) == 12
    page = scored.html()
    assert "Paired comparisons of all explainers on m" in page
    assert page.count('<span class="near"') == 1


def test_the_terminal_marks_them(scored: Leaderboard, capsys: pytest.CaptureFixture[str]) -> None:
    put_board(scored)
    shown = capsys.readouterr().out
    marks = {line.split()[0]: line for line in shown.splitlines()[2:6]}
    assert "]*" in marks["rise"]
    assert "]~" in marks["lime"]
    assert "]~  0" not in marks["gradcam"]
    assert "~ not distinguishable from it" in shown


def test_too_few_images_are_reported_once() -> None:
    few = board({"a": [0.1, 0.2, 0.3], "b": [1.1, 1.2, 1.3], "chance": [2, 3, 4]}, ["insertion", "deletion"])
    (note,) = [note for note in few.notes if "cannot distinguish" in note]
    assert note == (
        "3 images cannot distinguish any two explainers: of 3 paired comparisons, one is significant with 7 images"
        " at the earliest"
    )
    assert not any(one.significant for one in few.differences)


def test_equal_methods_are_not_distinguished() -> None:
    same = np.random.default_rng(6).normal(size=50)
    equal = board({"a": same, "b": same})
    assert [one.p for one in equal.differences] == [1.0]
    assert "a and b are not distinguishable" in [row["text"] for row in board_table(equal)["pairs"]]
