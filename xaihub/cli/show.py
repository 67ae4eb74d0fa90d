"""`xaihub show`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from xaihub.cli._app import App
from xaihub.cli._options import json_option
from xaihub.cli._output import cell, put, put_json, table
from xaihub.hub.describe import card


@click.command()
@click.argument("name")
@json_option
@click.pass_obj
def show(app: App, /, name: str, *, as_json: bool) -> None:
    """Show an explainer, metric, model and so on.

    Prints its paper, parameters, needs, cost and limits.

    \b
    Examples:
      xaihub show rise
      xaihub show efficientnet_lite0 --json
      xaihub show objective:shapley                    if an explainer has the same name
    """
    found = card(app.hub, name)
    if as_json:
        put_json(found)
        return
    parameters = found.pop("parameters", None)
    put(f"{found.pop('name')} ({found.pop('kind')}): {found.pop('summary', '')}")
    put("\n".join(_lines(found)))
    if parameters:
        put("\nParameters (-p NAME=VALUE)")
        put(table(parameters, ("name", "type", "default", "description")))


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    for key, value in facts.items():
        if key == "paper":
            yield f"  {'paper':<15} {value['title']} ({value['year']}), {value['url']}"
        elif isinstance(value, Mapping):
            for inner, text in value.items():
                if text not in ("", None, ()):
                    yield f"  {f'{key}.{inner}':<21} {text}"
        else:
            yield f"  {key.replace('_', ' '):<15} {cell(value)}"
