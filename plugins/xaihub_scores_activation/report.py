"""The reconstruction's figures as Markdown, with the paper's beside them and what is unknown said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["PAPER", "UNKNOWN", "markdown"]

# What the paper states, from its abstract, and what a machine-written summary adds.
PAPER = {
    "gain with 10 features (5 relevant)": "11.24 %",
    "gain with 16 features (5 relevant)": "29.33 %",
    "scoring time": "2 s against 300 s for SHAP, 150 times",
    "Pearson": "above 0.92 (in a machine-written summary only, not in the abstract)",
}
UNKNOWN = (
    "the paper's data sets, networks, baselines, optimiser settings and splits",
    "whether its gains are points or relative, and against which baseline",
    "which SHAP explainer, which budget and which hardware its 300 s took, and whether its 2 s are training or reading",
    "between which vectors, and on which data, its Pearson correlation is taken",
)
_MAIN = ("accuracy without", "accuracy with", "gain in points", "Pearson with SHAP", "Spearman with SHAP",
         "top 5 shared", "stability", "largest weight x d")  # fmt: skip
_TRUTH = ("relevance AUC", "top 5 relevant", "weight on relevant", "Pearson with relevance", "relevance AUC of SHAP")
_PARITY = ("accuracy without", "accuracy with", "gain in points", "relative gain in %", "relevance AUC")


def markdown(record: Mapping[str, Any]) -> str:
    """Return the whole report."""
    return "\n".join(_lines(record))


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    seeds, epochs = record["settings"]["seeds"], record["settings"]["epochs"]
    yield f"Seeds {', '.join(map(str, seeds))}; {epochs} epochs; in brackets 95 % t intervals over seeds.\n"
    yield "### Accuracy and agreement with SHAP\n"
    yield from _table(record["tables"], _MAIN)
    made = [row for row in record["tables"] if "relevance AUC" in row["figures"]]
    if made:
        yield "\n### Are the relevant columns found?\n"
        yield from _table(made, _TRUTH)
    if record["control"]:
        yield "\n### Control: training labels shuffled\n"
        yield "Agreement with SHAP stays; so it tells that the weights describe the model, not that they are true.\n"
        yield from _table(record["control"], ("accuracy with", "Pearson with SHAP", "relevance AUC", "top 5 relevant"))
    if record["hosts"]:
        yield "\n### Another host: a transformer with one token a row\n"
        yield from _table(record["hosts"], (*_MAIN[:4], "relevance AUC", "top 5 relevant"))
    if record["parity"]:
        yield "\n### More irrelevant columns: three-way parity\n"
        yield from _table(record["parity"], _PARITY)
        yield from _parity_note(record["parity"])
    if record["cost"]:
        yield "\n### Cost, seconds of CPU time\n"
        yield from _cost(record["cost"])
    yield "\n### Beside the paper\n"
    yield from (f"- {name}: {text}" for name, text in PAPER.items())
    yield "\nUnknown to us, so that none of this can be compared as such:\n"
    yield from (f"- {text}" for text in UNKNOWN)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    shown = [name for name in columns if any(name in row["figures"] for row in rows)]
    yield f"| data | recipe | {' | '.join(shown)} |"
    yield f"|{'---|' * (len(shown) + 2)}"
    for row in rows:
        cells = [_cell(row["figures"].get(name), name) for name in shown]
        yield f"| {row['table'].replace('_', ' ')} | {row['recipe']} | {' | '.join(cells)} |"


def _cell(figure: Mapping[str, Any] | None, name: str) -> str:
    if figure is None:
        return ""
    digits = 1 if "gain" in name else 3
    mean = f"{figure['mean']:.{digits}f}"
    if figure["low"] is None:
        return mean
    return f"{mean} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def _parity_note(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        values = sorted(row["figures"]["gain in points"]["values"])
        middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        listed = ", ".join(f"{value:+.1f}" for value in row["figures"]["gain in points"]["values"])
        what = f"{row['table'].replace('_', ' ')}, {row['recipe']}"
        yield f"\n{what}: median gain {middle:+.1f} points (by seed {listed})."
    yield "\nThe paper's 11.24 % (10 features) and 29.33 % (16) are of other, unknown data."


def _cost(cost: Mapping[str, float]) -> Iterator[str]:
    yield f"SHAP explains {cost['rows']:.0f} rows against {cost['background rows']:.0f} background rows.\n"
    yield "| what | figure |"
    yield "|---|---|"
    for name, value in cost.items():
        if name not in ("rows", "background rows"):
            yield f"| {name} | {value:.3g} |"
