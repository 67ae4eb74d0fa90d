"""`xaihub list`."""

from __future__ import annotations

import click

from xaihub.cli._app import App
from xaihub.cli._options import json_option
from xaihub.cli._output import put, put_json, table
from xaihub.hub.describe import KINDS, listing, models_of_adapters

COLUMNS = {
    "explainers": ("name", "needs", "summary"),
    "global_explainers": ("name", "needs", "summary"),
    "metrics": ("name", "higher_is_better", "summary"),
    "objectives": ("name", "cost", "summary"),
    "backends": ("name", "summary"),
    "baselines": ("name", "summary"),
    "engines": ("name", "summary"),
    "models": ("name", "weights", "summary"),
    "adapters": ("name", "summary"),
    "reproductions": ("name", "summary"),
    "plugins": ("name", "distribution", "version", "hooks", "problems"),
}


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--timm", "timm_pattern", metavar="PATTERN", help="Matching model names of timm (a glob).")
@click.option("--torchvision", "torchvision_pattern", metavar="PATTERN", help="Matching model names of torchvision.")
@json_option
@click.pass_obj
def list_(
    app: App, /, kind: str | None, timm_pattern: str | None, torchvision_pattern: str | None, *, as_json: bool
) -> None:
    """List explainers, metrics, models and so on.

    The list of models includes those that adapters of installed plugins name, but not all of timm and torchvision.

    \b
    Examples:
      xaihub list
      xaihub list explainers --json
      xaihub list models --timm 'vit*'
    """
    patterns = {"timm": timm_pattern, "torchvision": torchvision_pattern}
    wanted = {adapter: pattern for adapter, pattern in patterns.items() if pattern is not None}
    if wanted:
        if kind not in (None, "models"):
            raise click.UsageError("--timm and --torchvision are only supported for 'xaihub list models'")
        adapters = {app.hub.adapters.get(adapter).load()(): pattern for adapter, pattern in wanted.items()}
        names = [name for adapter, pattern in adapters.items() for name in adapter.names(pattern)]
        put_json(names) if as_json else put("\n".join(names))
        return
    kinds = (kind,) if kind else KINDS
    found = {each: listing(app.hub, each) for each in kinds}
    if kind == "models":  # only on request, because it imports the adapters of third parties
        found[kind] += models_of_adapters(app.hub)
    if as_json:
        put_json(found[kind] if kind else found)
        return
    for each, rows in found.items():
        if not kind:
            put(f"\n{each.upper()} ({len(rows)})" if each != kinds[0] else f"{each.upper()} ({len(rows)})")
        put(table(rows, COLUMNS[each]) if rows else f"no {each} are registered")
