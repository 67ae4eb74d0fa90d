"""The options of a training plan, shared by `xaihub train` and `xaihub sweep`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import click
import msgspec

from xaihub.cli._options import Opt, option
from xaihub.training.config import Config, checked

F = TypeVar("F", bound=Callable[..., Any])

# The fields of `Config` that are options, as the help shows them.
TOPICS = {
    "Model and data": "model checkpoint scratch size classes val augment min_crop skip_unreadable workers",
    "Optimization": "objective epochs batch_size accumulate lr head_lr_scale weight_decay optimizer schedule warmup"
    " clip ema freeze freeze_norm precision seed",
    "Selection and logs": "monitor patience keep save_every logger",
}
METAVARS = {"checkpoint": "FILE", "classes": "FILE", "ema": "DECAY", "patience": "N"}


class PlanCommand(click.Command):
    """A command whose help lists the options of the plan by topic."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per topic, then the remaining options."""
        options = [item for item in self.get_params(ctx) if isinstance(item, click.Option)]
        shown = {item.name: item.get_help_record(ctx) for item in options}
        topics = {title: [shown.pop(name) for name in names.split()] for title, names in TOPICS.items()}
        for title, records in {"Options": list(shown.values()), **topics}.items():
            with formatter.section(title):
                formatter.write_dl([record for record in records if record])


def plan_options(function: F) -> F:
    """Add the options of `TOPICS`, whose types, defaults and help are those of `Config`."""
    kinds, hints = get_type_hints(Config), get_type_hints(Config, include_extras=True)
    defaults = {item.name: item.default for item in msgspec.structs.fields(Config)}
    for name in reversed(" ".join(TOPICS.values()).split()):
        flags = ("-m", "--model") if name == "model" else ()
        given = Opt(get_args(hints[name])[1].description, *flags, metavar=METAVARS.get(name))
        function = option(name, kinds[name], defaults[name], given)(function)
    return function


def read_plan(data: str | None, values: Mapping[str, Any], parameters: Mapping[str, str]) -> Config:
    """Return the plan; paths become absolute, because a run may be resumed from another folder.

    Raises:
        UsageError: No data are given.
        ParameterError: A value is out of range, or two options exclude each other.
    """
    if not data:
        raise click.UsageError("no data to train on; name a folder, a CSV file, hf:NAME, digits or evidence")
    plan = {**values, "data": data, "parameters": dict(parameters)}
    for name in ("data", "checkpoint", "classes", "model"):
        path = plan[name]
        if path and (name != "model" or path.lower().endswith((".yaml", ".yml"))) and Path(path).exists():
            plan[name] = str(Path(path).resolve())
    return checked(plan)
