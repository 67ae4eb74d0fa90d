"""The reconstruction's figures as Markdown, next to the paper's and with what is unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

# From the paper's abstract, and where marked from a machine-written summary.
PAPER = {
    "gain with 10 features (5 relevant)": "11.24 %",
    "gain with 16 features (5 relevant)": "29.33 %",
    "scoring time": "2 s, against 300 s for SHAP (150 times)",
    "Pearson": "above 0.92 (in a machine-written summary only, not in the abstract)",
}
UNKNOWN = (
    "the paper's data sets, networks, baselines, optimizer settings and splits",
    "whether its gains are points or relative, and against which baseline",
    "which SHAP explainer, budget and hardware took 300 s, and whether the 2 s are training or reading",
    "between which vectors, and on which data, its Pearson correlation is taken",
)
_MAIN = ("accuracy without", "accuracy with", "gain in points", "Pearson with SHAP", "Spearman with SHAP",
         "top 5 shared", "stability", "largest weight x d")  # fmt: skip
_TRUTH = ("relevance AUC", "top 5 relevant", "weight on relevant", "Pearson with relevance", "relevance AUC of SHAP")
_PARITY = ("accuracy without", "accuracy with", "gain in points", "relative gain in %", "relevance AUC")
_CONTROL = ("accuracy with", "Pearson with SHAP", "relevance AUC", "top 5 relevant")


def markdown(record: Mapping[str, Any]) -> str:
    """Return the whole report."""
    return "\n".join(_lines(record))


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    seeds, epochs = record["settings"]["seeds"], record["settings"]["epochs"]
    yield f"Seeds {', '.join(map(str, seeds))}; {epochs} epochs; brackets hold 95 % t intervals over seeds.\n"
    yield "### Accuracy and agreement with SHAP\n"
    yield from _table(record["tables"], _MAIN)
    known = [row for row in record["tables"] if "relevance AUC" in row["figures"]]
    if known:
        yield "\n### Are the relevant columns found?\n"
        yield from _table(known, _TRUTH)
    if record["control"]:
        yield "\n### Control: training labels shuffled\n"
        yield "Agreement with SHAP remains, so it shows that the weights describe the model, not that they are true.\n"
        yield from _table(record["control"], _CONTROL)
    if record["hosts"]:
        yield "\n### Another host: a transformer with one token per row\n"
        yield from _table(record["hosts"], (*_MAIN[:4], "relevance AUC", "top 5 relevant"))
    if record["parity"]:
        yield "\n### More irrelevant columns: three-way parity\n"
        yield from _table(record["parity"], _PARITY)
        for row in record["parity"]:
            gains = row["figures"]["gain in points"]["values"]
            listed = ", ".join(f"{gain:+.1f}" for gain in gains)
            yield f"\n{_name(row)}, {row['recipe']}: median gain {median(gains):+.1f} points (by seed {listed})."
        yield "\nThe paper's 11.24 % (10 features) and 29.33 % (16) are from other, unknown data."
    if cost := record["cost"]:
        yield "\n### Cost, seconds of CPU time\n"
        yield f"SHAP explains {cost['rows']:.0f} rows against {cost['background rows']:.0f} background rows.\n"
        yield "| what | figure |\n|---|---|"
        yield from (f"| {name} | {value:.3g} |" for name, value in cost.items() if not name.endswith("rows"))
    yield "\n### Compared with the paper\n"
    yield from (f"- {name}: {text}" for name, text in PAPER.items())
    yield "\nUnknown to us, so no figure can be compared directly:\n"
    yield from (f"- {text}" for text in UNKNOWN)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    shown = [name for name in columns if any(name in row["figures"] for row in rows)]
    yield f"| data | recipe | {' | '.join(shown)} |"
    yield f"|{'---|' * (len(shown) + 2)}"
    for row in rows:
        cells = [_cell(row["figures"].get(name), 1 if "gain" in name else 3) for name in shown]
        yield f"| {_name(row)} | {row['recipe']} | {' | '.join(cells)} |"


def _name(row: Mapping[str, Any]) -> str:
    return str(row["table"]).replace("_", " ")


def _cell(figure: Mapping[str, Any] | None, digits: int) -> str:
    if figure is None:
        return ""
    mean = f"{figure['mean']:.{digits}f}"
    return mean if figure["low"] is None else f"{mean} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"
