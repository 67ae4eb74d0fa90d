"""`xaihub rank`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from xaihub.cli._app import App
from xaihub.cli._options import LIMIT_OF_SEVERAL, PAGE, TEXT, ModelOptions, Opt, named, options
from xaihub.cli._output import note, passes, progress, put, put_json, say, table
from xaihub.cli._prepare import TEMPLATE, Destination, limit_of, loading
from xaihub.hub import DEFAULT_GLOBAL_EXPLAINER

if TYPE_CHECKING:
    from xaihub.api.rank import RankOutcome
    from xaihub.ranking.explanation import GlobalExplanation


COLUMNS = ("rank", "name", "weight", "95 % interval", "times the mean")


@dataclass(frozen=True, kw_only=True)
class RankOptions(ModelOptions):
    """Which global explainers to run, and what to do with their rankings."""

    explainers: Annotated[tuple[str, ...], named("global_explainers", "-e", "--explainer")] = (
        DEFAULT_GLOBAL_EXPLAINER,
    )
    labels: Annotated[str | None, Opt("CSV file with the classes of the images (file, label).", metavar="FILE")] = None
    text: Annotated[tuple[str, ...], TEXT] = ()
    page: Annotated[int | None, PAGE] = None
    combine: Annotated[bool, Opt("Combine the rankings of the models, as seeds of one training.")] = False
    timeout: Annotated[float | None, LIMIT_OF_SEVERAL] = None
    template: Annotated[str | None, TEMPLATE] = None
    top: Annotated[int, Opt("Features to print.", type=click.IntRange(1))] = 10


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@options(RankOptions)
@click.pass_obj
def rank(app: App, /, images: tuple[str, ...], given: RankOptions) -> None:
    """Rank the features that a model as a whole relies on.

    IMAGE is a file, a folder or a glob; global explainers that read the ranking from the weights, such as scores, need
    none. Two files are written per model and global explainer: the chart (.png) and the ranking (.json); and for
    channels a contact sheet of the images that activate them most (__channels.png), if there are images.

    \b
    Examples:
      xaihub rank photos/ -m runs/gated/card.yaml
      xaihub rank photos/ -m runs/gated/card.yaml -e scores -e shap_global --labels labels.csv
      xaihub rank -m runs/a/card.yaml -m runs/b/card.yaml --combine
    """
    from xaihub.images import find_images

    sources = find_images(images, note=note(given.quiet)) if images else []
    place = Destination.parse(given.output, results=len(set(given.models)) * len(set(given.explainers)))
    from xaihub.api.loading import Selection
    from xaihub.api.parameters import make
    from xaihub.api.rank import combined
    from xaihub.api.rank import rank_models as run
    from xaihub.images.naming import OutputNames

    explainers = make(app.hub.global_explainers, app.hub.get_global_explainer, given.explainers, given.settings)
    records: list[dict[str, Any]] = []
    outcomes: list[RankOutcome] = []
    with progress(quiet=given.quiet) as bar:
        selection = Selection(models=given.models, loading=loading(given), text=given.text)
        models = selection.load(app.hub, bar.step)
        names = OutputNames((model.name for model in models), given.explainers)
        limit = limit_of(given.timeout, results=len(models) * len(explainers))
        ranked = run(
            models, explainers, sources, labels=given.labels, seed=given.seed, timeout=limit, watch=bar.watch,
            page=given.page,
        )  # fmt: skip
        for outcome in ranked:
            outcomes.append(outcome)
            if outcome.explanation is None:
                who = {"model": outcome.model.name, "explainer": outcome.explainer}
                say(f"error: {outcome.explainer} on {outcome.model.name}: {outcome.error}")
                records.append({**who, "error": str(outcome.error)})
            else:
                stem = names.stem(outcome.model.name, outcome.explainer)
                files = _write(outcome, outcome.explanation, place, stem, given.top)
                records.append({"files": list(map(str, files)), **outcome.explanation.to_dict()})
                _show(outcome.explanation, files, given)
    for error in {str(error): error for outcome in outcomes for error in outcome.photos.errors}:
        say(f"note: skipped: {error}")
    for explanation in combined(outcomes) if given.combine else []:
        files = _save(explanation, place, f"combined__{explanation.method}", given.top)
        records.append({"files": list(map(str, files)), **explanation.to_dict()})
        _show(explanation, files, given)
    if given.as_json:
        put_json(records)
    if any(outcome.error for outcome in outcomes):
        raise click.exceptions.Exit(1)


def _write(outcome: RankOutcome, explanation: GlobalExplanation, place: Destination, stem: str, top: int) -> list[Path]:
    """Write the ranking, its chart and, for channels, the contact sheet."""
    from xaihub.api.contact_sheet import channel_sheet, sheets_possible
    from xaihub.explainers.rendering import png_bytes
    from xaihub.files import write_file

    files = _save(explanation, place, stem, top)
    if sheets_possible(explanation, outcome.photos.sources):
        sheet = channel_sheet(outcome.model, explanation, outcome.photos, top=min(top, 6))
        files.append(write_file(place.path(stem, "__channels.png"), png_bytes(sheet)))
    return files


def _save(explanation: GlobalExplanation, place: Destination, stem: str, top: int) -> list[Path]:
    return [
        explanation.save_png(place.path(stem, ".png"), top=max(top, 20)),
        explanation.save(place.path(stem, ".json")),
    ]


def _show(explanation: GlobalExplanation, files: list[Path], given: RankOptions) -> None:
    if given.as_json:
        return
    put(explanation.claim)
    rows = [
        {
            "rank": row["rank"],
            "name": row["name"],
            "weight": f"{row['weight']:.4g}",
            "95 % interval": "" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}",
            "times the mean": "" if row["times_uniform"] is None else f"{row['times_uniform']:.2f}",
        }
        for row in explanation.table(given.top)
    ]
    put(table(rows, [name for name in COLUMNS if any(row[name] != "" for row in rows)]))
    put("\n".join(map(str, files)))
    if not given.quiet:
        for warning in explanation.warnings:
            say(f"note: {explanation.method}: {warning}")
    record = explanation.metadata
    if given.verbose and "cpu_seconds" in record:
        cost = f"{passes(record['forward_passes'], 'forward')}, {record['cpu_seconds']:.3g} s of CPU time"
        say(f"{cost}; layer {record['layer']!r}")
