"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from xaihub.cli._app import App
from xaihub.hub import DEFAULT_EXPLAINER, DEFAULT_MODEL

__all__ = ["SEED", "json_option", "model_options", "pairs", "quiet_options", "run_options"]

F = TypeVar("F", bound=Callable[..., Any])

SEED = click.IntRange(-(2**63), 2**63 - 1)  # as torch takes them


def _complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        registry = getattr(ctx.ensure_object(App).hub, kind)
        return [CompletionItem(spec.name, help=spec.summary) for spec in registry if spec.name.startswith(typed)]

    return complete


def _apply(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    def wrap(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return wrap


json_option = click.option("--json", "as_json", is_flag=True, help="Print records as JSON on stdout.")

model_options = _apply(
    [
        click.option(
            "-m",
            "--model",
            "models",
            multiple=True,
            default=(DEFAULT_MODEL,),
            show_default=True,
            shell_complete=_complete("models"),
            help="A zoo model, a model card (.yaml), or any timm, hf-hub: or torchvision/ name; may be repeated.",
        ),
        click.option("--checkpoint", metavar="FILE", help="Weights to load instead (.safetensors, .pt, .pth)."),
        click.option("--classes", metavar="FILE", help="Class names for --checkpoint, one a line."),
        click.option("--layer", metavar="NAME", help="The layer for activation maps, instead of the one found."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
        click.option("--batch-size", type=click.IntRange(1), help="Rows a forward pass; by default as memory allows."),
        click.option("--autocast", is_flag=True, help="Mixed precision."),
    ]
)

run_options = _apply(
    [
        click.option(
            "-e",
            "--explainer",
            "explainers",
            multiple=True,
            default=(DEFAULT_EXPLAINER,),
            show_default=True,
            shell_complete=_complete("explainers"),
            help="An explainer of 'xaihub list explainers'; may be repeated.",
        ),
        click.option(
            "-p",
            "--param",
            "values",
            multiple=True,
            metavar="NAME=VALUE",
            help="A parameter of the explainers that have it, or EXPLAINER.NAME=VALUE for one; may be repeated.",
        ),
        click.option(
            "-t",
            "--target",
            metavar="CLASS",
            help="Index, class name, rank (top2) or contrast ('tabby vs tiger cat'); by default the predicted class.",
        ),
        click.option("--seed", type=SEED, default=0, show_default=True, help="Fixes every random choice."),
    ]
)

quiet_options = _apply(
    [
        click.option("-q", "--quiet", is_flag=True, help="No progress, no notes; only results and errors."),
        click.option("-v", "--verbose", is_flag=True, help="Say which layer was chosen and why, cost and warnings."),
    ]
)


def pairs(values: tuple[str, ...]) -> dict[str, str]:
    """Split NAME=VALUE options.

    Raises:
        click.BadParameter: An option is not of that form.
    """
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="-p")
        found[name.strip()] = value.strip()
    return found
