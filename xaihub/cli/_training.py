"""The options of a training plan, shared by `xaihub train` and `xaihub sweep`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import click
import msgspec

from xaihub.api.parameters import Setting
from xaihub.cli._options import Display, Opt, option, parse_settings
from xaihub.cli._output import say
from xaihub.training.config import Config, read_file, settings

F = TypeVar("F", bound=Callable[..., Any])

# The fields of `Config` that are options, as the help shows them; the others are set by --set or --config.
TOPICS = {
    "Model and data": "model checkpoint scratch size classes val",
    "Optimization": "objective epochs batch_size lr freeze precision seed",
}
FLAGS = " ".join(TOPICS.values()).split()
METAVARS = {"checkpoint": "FILE", "classes": "FILE"}


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Display):
    """Where the rest of a plan comes from."""

    config: Annotated[
        str | None, Opt("YAML file of settings, such as a run's config.yaml; options override it.", metavar="FILE")
    ] = None
    set: Annotated[
        tuple[Setting, ...],
        Opt("Set one of the further settings below; repeatable.", metavar="NAME=VALUE", callback=parse_settings),
    ] = ()


class PlanCommand(click.Command):
    """A command whose help lists the options of the plan by topic."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per topic, then the remaining options, then the names of the settings."""
        options = [item for item in self.get_params(ctx) if isinstance(item, click.Option)]
        shown = {item.name: item.get_help_record(ctx) for item in options}
        topics = {title: [shown.pop(name) for name in names.split()] for title, names in TOPICS.items()}
        for title, records in {"Options": list(shown.values()), **topics}.items():
            with formatter.section(title):
                formatter.write_dl([record for record in records if record])
        further = [name for name in Config.__struct_fields__ if name not in (*FLAGS, "data", "parameters")]
        with formatter.section("Further settings, described in docs/how-to/train.md"):
            formatter.write_text(", ".join(further))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Point to --set where a setting is typed as an option."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            typed = error.option_name
            name = typed.lstrip("-").removeprefix("no-").replace("-", "_")
            if name in Config.__struct_fields__:
                switch = get_type_hints(Config)[name] in (bool, bool | None)
                value = ("false" if typed.startswith("--no-") else "true") if switch else "VALUE"
                raise click.UsageError(f"there is no option {typed}; use --set {name}={value}", ctx) from error
            raise


def plan_options(function: F) -> F:
    """Add the options of `TOPICS`, whose types, defaults and help are those of `Config`."""
    kinds, hints = get_type_hints(Config), get_type_hints(Config, include_extras=True)
    defaults = {item.name: item.default for item in msgspec.structs.fields(Config)}
    for name in reversed(FLAGS):
        flags = ("-m", "--model") if name == "model" else ()
        given = Opt(get_args(hints[name])[1].description, *flags, metavar=METAVARS.get(name))
        function = option(name, kinds[name], defaults[name], given)(function)
    return function


def typed(ctx: click.Context, name: str) -> bool:
    """Return whether an option was given on the command line."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def gathered(ctx: click.Context, data: str | None, flags: Mapping[str, Any], given: PlanOptions) -> dict[str, Any]:
    """Return the values of a plan: defaults, then those of --config, then options, then those of --set.

    Raises:
        UsageError: No data are given.
        ParameterError: A setting is unknown, or its value has the wrong type or range.
    """
    plan = read_file(given.config) if given.config else {}
    plan |= {name: value for name, value in flags.items() if name not in plan or typed(ctx, name)}
    plan |= settings({f"{item.who}.{item.name}".lstrip("."): item.value for item in given.set})
    if data:
        plan["data"] = data
    if not plan.get("data"):
        raise click.UsageError("no data to train on; name a folder, a CSV file, hf:NAME, digits or evidence")
    return plan


@contextmanager
def on_interrupt(how: str, needed: Path | None = None) -> Iterator[None]:
    """On Ctrl-C, print how to continue, if the file that this needs has been written."""
    try:
        yield
    except KeyboardInterrupt:
        if needed is None or needed.exists():
            say(f"interrupted; {how}")
        raise
