"""`xaihub recommend`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import click

from xaihub.api.parameters import Setting
from xaihub.cli._app import App
from xaihub.cli._options import DEVICE, INPUT, LIKE, MODEL, OUTPUTS, TEXT, Display, Opt, options
from xaihub.cli._output import progress, put, put_json, say, some, table
from xaihub.cli._prepare import TEMPLATE
from xaihub.hub import DEFAULT_MODEL

if TYPE_CHECKING:
    from xaihub.api.measured import Measurement
    from xaihub.api.recommend import Candidate, Recommendation


@dataclass(frozen=True, kw_only=True)
class RecommendOptions(Display):
    """The models, and the time that an explanation may take."""

    models: Annotated[tuple[str, ...], MODEL] = (DEFAULT_MODEL,)
    checkpoint: Annotated[str | None, Opt("Weights to load instead (.safetensors, .pt, .pth).", metavar="FILE")] = None
    outputs: Annotated[str, OUTPUTS] = ""
    inputs: Annotated[tuple[Setting, ...], INPUT] = ()
    layer: Annotated[str | None, Opt("Layer for activation maps; default: automatic.", metavar="NAME")] = None
    like: Annotated[tuple[str, ...], LIKE] = ()
    text: Annotated[tuple[str, ...], TEXT] = ()
    time: Annotated[
        str | None, Opt("Time that one explanation may take: seconds or minutes, as in 5s or 2m.", metavar="SECONDSs")
    ] = None
    template: Annotated[str | None, TEMPLATE] = None
    device: Annotated[str, DEVICE] = "auto"


@click.command()
@options(RecommendOptions)
@click.pass_obj
def recommend(app: App, /, given: RecommendOptions) -> None:
    """Recommend explainers for a model and a time.

    Shows which explainers are valid for the model, which refuse and why, the seconds to expect on this machine, the
    published scores with 95 % intervals, and two commands to try first. Every explainer that needs more than the
    model's outputs is tried on one image until its checks have passed. With --time, methods that fit come first.

    \b
    Examples:
      xaihub recommend -m resnet50
      xaihub recommend -m vit_base_patch16_224 --time 5s
      xaihub recommend --checkpoint my.safetensors -m resnet18 --json
    """
    from xaihub.api.loading import Selection
    from xaihub.api.recommend import parse_time
    from xaihub.api.recommend import recommend as ranked

    seconds = None if given.time is None else parse_time(given.time)
    selected = {"checkpoint": given.checkpoint, "outputs": given.outputs or None, "layer": given.layer}
    words = [word for name, value in selected.items() if value for word in (f"--{name}", value)]
    words += [word for one in given.inputs for word in ("--input", f"{one.name}={one.value}")]
    words += [word for image in given.like for word in ("--like", image)]
    words += [word for text in given.text for word in ("--text", text)]
    found = []
    with progress(quiet=given.quiet) as bar:
        loading: dict[str, Any] = {"input": {one.name: one.value for one in given.inputs}}
        loading |= {name: getattr(given, name) for name in ("device", "checkpoint", "outputs", "layer")}
        models = Selection(models=given.models, loading=loading, like=given.like, text=given.text).load(app.hub)
        for name, model in zip(dict.fromkeys(given.models), models, strict=True):
            found.append(ranked(app.hub, model, seconds=seconds, options=["-m", name, *words], watch=bar.watch))
    if given.as_json:
        put_json([one.to_dict() for one in found])
        return
    for one in found:
        _show(one, quiet=given.quiet)


def _show(found: Recommendation, *, quiet: bool) -> None:
    within = "" if found.seconds is None else f", {found.seconds:g} s per explanation"
    put(f"{found.model} on {found.device}: {found.speed:.3g} forward passes per second{within}")
    valid = [one for one in found.candidates if one.valid]
    names = list(dict.fromkeys(row.metric for row in found.table.rows))
    rows = [
        {
            "explainer": one.name,
            "passes": _passes(one),
            "seconds": "?" if one.seconds is None else f"{'<= ' * one.at_most}{one.seconds:.2g}",
            **({} if found.seconds is None else {"fits": _fits(one)}),
            **{name: next((_score(row) for row in one.measured if row.metric == name), "-") for name in names},
        }
        for one in valid
    ]
    if rows:
        put(table(rows, rows[0]))
    for one in valid:
        if one.trial.reason:
            put(f"{one.name} warns: {one.trial.reason}")
    refused = [one for one in found.candidates if not one.valid]
    if refused:
        put("\nnot valid, or not tried")
        reasons = [{"explainer": one.name, "why": f"{one.trial.verdict}: {one.trial.reason}"} for one in refused]
        put(table(reasons, ("explainer", "why")))
    if found.commands:
        put("\ntry first")
        put("\n".join(f"  {command}" for command in found.commands))
    if not quiet:
        for line in _notes(found):
            say(f"note: {line}")


def _notes(found: Recommendation) -> Iterator[str]:
    table, unknown = found.table, [one.name for one in found.candidates if one.valid and one.passes is None]
    yield (
        f"scores are means over {table.images} images on {table.model} with {table.budget} passes where a method can"
        " choose them, with 95 % intervals; * best; another model or other images may rank them differently"
    )
    if unknown:
        yield f"the passes of {some(unknown)} depend on the image or the layer: xaihub show {unknown[0]}"
    few = [one.name for one in found.candidates if one.affordable is not None and one.affordable < table.budget]
    if few:
        yield f"{found.seconds:g} s allow fewer passes than the {table.budget} that the scores of {some(few)} are for"


def _passes(one: Candidate) -> str:
    return "?" if one.passes is None else f"{'<= ' * one.at_most}{one.passes:g}"


def _fits(one: Candidate) -> str:
    if one.affordable is not None:
        return f"{one.affordable} passes"
    return {True: "yes", False: "no", None: "?"}[one.fits]


def _score(row: Measurement) -> str:
    return f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]{'*' * row.best}"
