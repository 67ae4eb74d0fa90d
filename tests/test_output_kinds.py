"""The page about kinds of output: it covers everything that is built in, and says what a run says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.output_kinds import EXPLAINERS, METRICS, explainer_cell, family, hub, metric_cell, pair_cell, together
from docs.planted_kinds import CELLS, KINDS, Blind, Exact, Noise, case, changed, moved, planted
from xaihub import Outputs
from xaihub.models.outputs import KINDS as DECLARED

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "reference" / "output-kinds.md").read_text(encoding="utf-8")


def table(section: str) -> list[list[str]]:
    """The rows of a section's table, the head first."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if set(row) != {"---"}]


def test_the_page_covers_every_explainer_metric_family_and_kind() -> None:
    for section, registry, families in (
        ("Explainers", hub().explainers, EXPLAINERS),
        ("Metrics", hub().metrics, METRICS),
    ):
        head, *rows = table(section)
        assert head[2:] == list(KINDS)
        expected = {(family(spec, families), f"`{spec.name}`") for spec in registry}
        assert {(row[0], row[1]) for row in rows} == expected
    head, *rows = table("Both")
    assert set(head[2:]) == {family(spec, METRICS) for spec in hub().metrics}
    groups = {family(spec, EXPLAINERS) for spec in hub().explainers} - {"controls"}
    assert {(row[0], row[1]) for row in rows} == {(kind, group) for kind in KINDS for group in groups}
    assert {kind.partition(" ")[0] for kind in KINDS} >= set(DECLARED)


def test_every_cell_passes_or_is_refused_with_a_reason() -> None:
    reasons = dict(re.findall(r"^(\d+)\. (.+)$", PAGE.partition("\n## Reasons\n")[2], re.MULTILINE))
    for section in ("Explainers", "Metrics"):
        for row in table(section)[1:]:
            for cell in row[2:]:
                found = re.fullmatch(r"yes|-|no \[(\d+)\]", cell)
                assert found, (row[1], cell)
                assert found[1] is None or len(reasons[found[1]].split()) > 3
                assert cell != "-" or row[0] == "controls"
    assert all(re.fullmatch(r"no|\d+( \(\d+ no\))?", cell) for row in table("Both")[1:] for cell in row[2:])


# One of each verdict, on kinds that differ in what they allow.
EXPLAINER_CELLS = [
    ("saliency", "embedding (--like)"), ("gradcam", "function"), ("occlusion", "regression"), ("convad", "binary"),
    ("convad", "embedding (--like)"), ("attention_gradient", "prompts (--text)"), ("shapley", "multiclass"),
    ("deeplift", "embedding (--like)"), ("control_centre", "binary"),
]  # fmt: skip
METRIC_CELLS = [
    ("insertion", "regression"), ("log_odds", "multilabel"), ("log_odds", "function"), ("grid_pointing", "multiclass"),
    ("random_logit", "binary"), ("sparseness", "binary"), ("relevance_mass", "embedding (--like)"),
    ("monotonicity", "binary"), ("sufficient_drop", "prompts (--text)"), ("cost_seconds", "function"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), EXPLAINER_CELLS)
def test_cells_of_explainers_are_what_a_run_says(name: str, kind: str) -> None:
    assert stored("Explainers", name, kind) == explainer_cell(name, kind)


@pytest.mark.parametrize(("name", "kind"), METRIC_CELLS)
def test_cells_of_metrics_are_what_a_run_says(name: str, kind: str) -> None:
    assert stored("Metrics", name, kind) == metric_cell(name, kind)


def stored(section: str, name: str, kind: str) -> str:
    """A cell of the page, in the words of the check."""
    head, *rows = table(section)
    row = next(row for row in rows if row[1] == f"`{name}`")
    mark, _, number = row[head.index(kind)].partition(" [")
    reason = re.search(rf"^{number.rstrip(']')}\. (.+)$", PAGE, re.MULTILINE) if number else None
    return {"yes": "yes", "-": "control", "no": f"refused: {reason[1] if reason else ''}"}[mark]


@pytest.mark.slow
def test_cells_of_pairs_are_what_a_run_says() -> None:
    head, *rows = table("Both")
    for kind, group, column in (("regression", "attention", "localisation"), ("binary", "pixel sets", "faithfulness")):
        row = next(row for row in rows if row[:2] == [kind, group])
        explainers = [spec.name for spec in hub().explainers if family(spec, EXPLAINERS) == group]
        metrics = [spec.name for spec in hub().metrics if family(spec, METRICS) == column]
        found = together([pair_cell(kind, one, other) for one in explainers for other in metrics])
        assert row[head.index(column)] == found


@pytest.mark.parametrize("kind", KINDS)
def test_the_checks_can_fail(kind: str) -> None:
    given = planted(kind)
    scene = given.scene()
    exact = case(Exact(), scene)
    assert given.points(exact.explanation)
    assert not given.points(changed(exact, moved).explanation)
    for blind in (Noise(), Blind()):
        assert given.points(case(blind, scene).explanation) == (type(blind) is Blind)  # the red cell is the brightest
    assert int(given.truth.sum()) == given.truth.numel() // CELLS**2
    assert together(["yes", "refused: why", "wrong: 1 instead of 2"]) == "1 (1 no) **1 wrong**"
    assert isinstance(given.model.outputs, Outputs)
