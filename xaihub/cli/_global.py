"""`xaihub explain --global`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xaihub.cli._app import App
from xaihub.cli._options import pairs
from xaihub.cli._output import progress, put, put_json, say, table
from xaihub.hub import DEFAULT_GLOBAL_EXPLAINER

if TYPE_CHECKING:
    from xaihub.api.rank import GlobalOutcome
    from xaihub.ranking.explanation import GlobalExplanation

__all__ = ["explain_globally"]

# Options of single images, which mean nothing here.
_LOCAL = {"target": "-t", "terminal": "--terminal"}
COLUMNS = ("rank", "name", "weight", "95 % interval", "times the mean")


def explain_globally(ctx: click.Context, images: tuple[str, ...], output: str, options: dict[str, Any]) -> None:
    """Rank the features of each model by each global explainer; write and show the rankings."""
    given = click.core.ParameterSource.COMMANDLINE
    for name, shown in _LOCAL.items():
        if ctx.get_parameter_source(name) is given:
            raise click.UsageError(f"{shown} goes with single images, not with --global", ctx)
    named = ctx.get_parameter_source("explainers") is given
    names = options["explainers"] if named else (DEFAULT_GLOBAL_EXPLAINER,)
    values = pairs(options["values"])
    app: App = ctx.obj
    from xaihub.cli.explain import check_writable, load_models
    from xaihub.images import find_images

    sources = find_images(images) if images else []
    check_writable(Path(output))
    from xaihub.api.rank import combined, explain_global, make_global_explainers, record_of

    explainers = make_global_explainers(app.hub, names, values)
    models = load_models(app, options)
    records, outcomes, failed = [], [], 0
    with progress(quiet=options["quiet"]) as bar:
        for outcome in explain_global(
            models, explainers, sources, labels=options["labels"], seed=options["seed"], watch=bar.watch
        ):
            outcomes.append(outcome)
            files: list[Path] = []
            if outcome.explanation is None:
                failed += 1
                say(f"error: {outcome.explainer} on {outcome.model.name}: {outcome.error}")
            else:
                files = _write(outcome, Path(output), options["top"])
            records.append(record_of(outcome, files))
            if outcome.explanation is not None and not options["as_json"]:
                _show(outcome.explanation, files, options)
    for error in {str(error): error for outcome in outcomes for error in outcome.photos.errors}:
        say(f"note: left out: {error}")
    for explanation in combined(outcomes) if options["combine"] else []:
        files = _save(explanation, Path(output), f"combined__{explanation.method}", options["top"])
        records.append({"files": list(map(str, files)), **explanation.to_dict()})
        if not options["as_json"]:
            _show(explanation, files, options)
    if options["as_json"]:
        put_json(records)
    if failed:
        raise click.exceptions.Exit(1)


def _write(outcome: GlobalOutcome, folder: Path, top: int) -> list[Path]:
    """Write the ranking, its chart and, for channels, the sheet of the most activating images."""
    from xaihub.api.contact_sheet import channel_sheet, sheets_possible
    from xaihub.files import write_file

    explanation = outcome.explanation
    assert explanation is not None  # noqa: S101 - the caller handles failures
    stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in f"{outcome.model.name}__{outcome.explainer}")
    files = _save(explanation, folder, stem, top)
    if sheets_possible(explanation, outcome.photos.sources):
        sheet = channel_sheet(outcome.model, explanation, outcome.photos, top=min(top, 6))
        path = folder / f"{stem}__channels.png"
        files.append(write_file(path, lambda file: sheet.save(file, "PNG")))
    return files


def _save(explanation: GlobalExplanation, folder: Path, stem: str, top: int) -> list[Path]:
    return [
        explanation.save_png(folder / f"{stem}.png", top=max(top, 20)),
        explanation.save(folder / f"{stem}.json"),
    ]


def _show(explanation: GlobalExplanation, files: list[Path], options: dict[str, Any]) -> None:
    put(explanation.claim)
    rows = [
        {
            "rank": row["rank"],
            "name": row["name"],
            "weight": f"{row['weight']:.4g}",
            "95 % interval": "" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}",
            "times the mean": "" if row["times_uniform"] is None else f"{row['times_uniform']:.2f}",
        }
        for row in explanation.table(options["top"])
    ]
    columns = [name for name in COLUMNS if any(row[name] != "" for row in rows)]
    put(table(rows, columns))
    put("\n".join(map(str, files)))
    if not options["quiet"]:
        for warning in explanation.warnings:
            say(f"note: {explanation.method}: {warning}")
    if options["verbose"] and "cpu_seconds" in explanation.metadata:
        record = explanation.metadata
        say(
            f"{record['forward_passes']} forward passes, {record['cpu_seconds']:.3g} s of CPU time;"
            f" layer {record['layer']!r}"
        )
