"""Options as typed records: each field of a frozen dataclass declares one option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import click
from click.shell_completion import CompletionItem

from xaihub.api.parameters import Setting
from xaihub.cli._app import App
from xaihub.errors import ParameterError
from xaihub.hub import DEFAULT_EXPLAINER, DEFAULT_MODEL

__all__ = ["Display", "MethodOptions", "ModelOptions", "Opt", "json_option", "named_option", "options"]

F = TypeVar("F", bound=Callable[..., Any])


class Opt:
    """What `click.option` takes, without the argument's name."""

    def __init__(self, *flags: str, **settings: Any) -> None:
        """Take the flags, such as "-m" and "--model", and click's keyword arguments."""
        self.flags, self.settings = flags, settings

    def named(self, name: str) -> Callable[[F], F]:
        """Return click's decorator for the argument called `name`."""
        return click.option(*self.flags, name, **self.settings)

    def altered(self, **settings: Any) -> Opt:
        """Return this option with other settings."""
        return Opt(*self.flags, **{**self.settings, **settings})


def options(record: type, name: str) -> Callable[[F], F]:
    """Add one option per field of the dataclass `record`, and pass them as one argument called `name`."""
    hints = get_type_hints(record, include_extras=True)
    declared = {field.name: get_args(hints[field.name])[1] for field in fields(record)}

    def wrap(function: F) -> F:
        @wraps(function)
        def gathered(*args: Any, **given: Any) -> Any:
            return function(*args, **{name: record(**{key: given.pop(key) for key in declared})}, **given)

        for key, option in reversed(declared.items()):
            gathered = option.named(key)(gathered)
        return gathered  # type: ignore[return-value]

    return wrap


def _settings(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[Setting, ...]:
    try:
        return tuple(Setting.parse(text) for text in texts)
    except ParameterError as error:
        raise click.BadParameter(error.message, ctx, param) from error


def _seed(ctx: click.Context, param: click.Parameter, seed: int | None) -> int | None:
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise click.BadParameter(f"{seed} is not a 64-bit integer", ctx, param)
    return seed


def _complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        registry = getattr(ctx.ensure_object(App).hub, kind)
        return [CompletionItem(spec.name, help=spec.summary) for spec in registry if spec.name.startswith(typed)]

    return complete


def named_option(flag: str, kind: str, help: str, **settings: Any) -> Opt:
    """Return a repeatable option whose values are names in the registry `kind` of the hub."""
    return Opt(*flag.split("/"), multiple=True, shell_complete=_complete(kind), help=help, **settings)


MODEL_HELP = (
    "Zoo model, model card (.yaml), or any timm, hf-hub: or torchvision/ name (see 'xaihub list models'); repeatable."
)
PARAM = Opt(
    "-p",
    "--param",
    multiple=True,
    metavar="[WHO.]NAME=VALUE",
    callback=_settings,
    help="Set a parameter of every selected explainer, metric or objective that has NAME, or only of WHO; repeatable.",
)
SEED = Opt("--seed", type=int, callback=_seed, default=0, show_default=True, help="Seed of every random choice.")
DEVICE = Opt("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
BATCH_SIZE = Opt(
    "--batch-size", type=click.IntRange(1), help="Images per forward pass; default: as many as fit in memory."
)
JSON = Opt("--json", is_flag=True, help="Print the results as JSON on stdout.")
QUIET = Opt("-q", "--quiet", is_flag=True, help="Print only results and errors, no progress and no notes.")
OUTPUT = Opt(
    "-o",
    "--output",
    metavar="PATH",
    default="xaihub-out",
    show_default=True,
    help="Output folder, or a file name that ends in .png if there is a single result.",
)

json_option = JSON.named("as_json")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which models to load, and how to run them."""

    models: Annotated[
        tuple[str, ...], named_option("-m/--model", "models", MODEL_HELP, default=(DEFAULT_MODEL,), show_default=True)
    ]
    checkpoint: Annotated[
        str | None, Opt("--checkpoint", metavar="FILE", help="Load these weights instead (.safetensors, .pt, .pth).")
    ]
    classes: Annotated[str | None, Opt("--classes", metavar="FILE", help="Class names for --checkpoint, one per line.")]
    layer: Annotated[
        str | None, Opt("--layer", metavar="NAME", help="Layer for activation maps; default: chosen automatically.")
    ]
    device: Annotated[str, DEVICE]
    batch_size: Annotated[int | None, BATCH_SIZE]
    autocast: Annotated[bool, Opt("--autocast", is_flag=True, help="Run the model in mixed precision.")]


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Which explainers to run, with which parameters, on which class."""

    explainers: Annotated[
        tuple[str, ...],
        named_option(
            "-e/--explainer",
            "explainers",
            "Explainer (see 'xaihub list explainers'); repeatable.",
            default=(DEFAULT_EXPLAINER,),
            show_default=True,
        ),
    ]
    settings: Annotated[tuple[Setting, ...], PARAM]
    target: Annotated[
        str | None,
        Opt(
            "-t",
            "--target",
            metavar="CLASS",
            help="Class index or name, rank (top2) or contrast ('tabby vs tiger cat'); default: the predicted class.",
        ),
    ]
    seed: Annotated[int, SEED]


@dataclass(frozen=True, kw_only=True)
class Display:
    """What to print."""

    as_json: Annotated[bool, JSON]
    quiet: Annotated[bool, QUIET]
    verbose: Annotated[
        bool, Opt("-v", "--verbose", is_flag=True, help="Report the chosen layer and why, the prediction and the cost.")
    ]
