"""The table of `bench_convad_paper.py`: means with bootstrap intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 4000
LEVELS = ["0", "0.25", "0.5", "0.75", "0.9"]
CUTS = len(LEVELS)
Record = dict[str, Any]
Reader = Callable[[Record], float]


def report(records: Sequence[Record], split: str) -> None:
    """Print for each model the methods' means, and `convad` minus each other method, in Markdown."""
    half = {"dev": 0, "test": 1}.get(split)
    kept = [one for one in records if half is None or one["number"] % 2 == half]
    models = list(dict.fromkeys(one["model"] for one in kept))
    for model in models:
        _model(model, [one for one in kept if one["model"] == model])
    if len(models) > 1:
        _model("all models, which are averaged photo by photo", kept)


def _model(title: str, records: Sequence[Record]) -> None:
    methods = list(dict.fromkeys(one["method"] for one in records))
    by = {name: {(one["model"], one["photo"]): one for one in records if one["method"] == name} for name in methods}
    whole = [pair for pair in by[methods[0]] if all(pair in by[method] for method in methods)]
    rows = {method: [by[method][pair] for pair in whole] for method in methods}
    first = rows[methods[0]][0]
    print(f"\n{title}: {len({photo for _, photo in whole})} photos, {first['search']} rows a search\n")
    table("Over the five confidences, and at equal size", rows, _summaries(len(first["colours"]) - CUTS))
    for name, reader in (
        ("Area", "areas"),
        ("Kept on colours", "colours"),
        ("Kept on photos", "photos"),
    ):
        table(
            f"{name}, by the share of the confidence that is kept",
            rows,
            {level: _at(reader, place) for place, level in enumerate(LEVELS)},
        )
    table("Drop of confidence under the method's own pass", rows, {lv: _drop("own", k) for k, lv in enumerate(LEVELS)})
    table("Drop of confidence with zeros", rows, {lv: _drop("plain", k) for k, lv in enumerate(LEVELS)})


def _summaries(sizes: int) -> dict[str, Reader]:
    found: dict[str, Reader] = {
        "area": lambda one: float(np.mean(one["areas"])),
        "on colours": lambda one: float(np.mean(one["colours"][:CUTS])),
        "on photos": lambda one: float(np.mean(one["photos"][:CUTS])),
        "drop, own": lambda one: one["confidence"] - float(np.mean(one["own"])),
        "drop, zeros": lambda one: one["confidence"] - float(np.mean(one["plain"][:CUTS])),
        "equal size, colours": lambda one: float(np.mean(one["colours"][CUTS:])),
        "equal size, photos": lambda one: float(np.mean(one["photos"][CUTS:])),
    }
    return found if sizes else dict(list(found.items())[:-2])


def _at(key: str, place: int) -> Reader:
    return lambda one: float(one[key][place])


def _drop(key: str, place: int) -> Reader:
    return lambda one: float(one["confidence"] - one[key][place])


def table(title: str, rows: dict[str, list[Record]], readers: dict[str, Reader]) -> None:
    print(f"**{title}**\n\n| | {' | '.join(readers)} |\n|---|{'---|' * len(readers)}")
    values = {method: _by_photo(found, list(readers.values())) for method, found in rows.items()}
    base = next(iter(values))
    for method, found in values.items():
        print(f"| {method} | {' | '.join(_cell(column) for column in found.T)} |")
    for method, found in values.items():
        if method != base:
            print(
                f"| {base} − {method} | {' | '.join(_cell(column, sign=True) for column in (values[base] - found).T)} |"
            )
    print()


def _by_photo(records: Sequence[Record], readers: Sequence[Reader]) -> NDArray[np.float64]:
    """Return (photos, readers); the models of a photo are averaged, since photos are what is drawn."""
    found: dict[str, list[list[float]]] = {}
    for one in records:
        found.setdefault(one["photo"], []).append([read(one) for read in readers])
    return np.array([np.mean(models, axis=0) for models in found.values()])


def _cell(values: NDArray[np.float64], *, sign: bool = False) -> str:
    """Return the mean with its 95 % bootstrap interval over photos; bold if a difference's excludes 0."""
    picks = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    mean = f"{values.mean():+.3f}" if sign else f"{values.mean():.3f}"
    mean = f"**{mean}**" if sign and (low > 0 or high < 0) else mean
    return f"{mean} [{low:.3f}, {high:.3f}]"
