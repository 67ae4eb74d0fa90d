"""`xaihub info`."""

from __future__ import annotations

from typing import Any

import click

from xaihub.cli._app import App
from xaihub.cli._options import json_option
from xaihub.cli._output import put, put_json, table


@click.command()
@json_option
@click.pass_obj
def info(app: App, /, *, as_json: bool) -> None:
    """Report versions, devices and plugins, for bug reports.

    The report contains no paths, user names or host names.

    \b
    Examples:
      xaihub info
      xaihub info --json
    """
    from xaihub.plugin_tools.environment import environment

    found = environment(app.hub.host)
    if as_json:
        put_json(found)
        return
    put(f"xaihub {found['xaihub']}, Python {found['python']}, {found['platform']}")
    put(f"devices: {', '.join(found['devices'])}; {found['cpus']} CPUs, {found['threads']} thread(s)")
    put("\nLIBRARIES\n" + table(_rows(found["libraries"]), ("name", "version")))
    plugins = table(found["plugins"], ("name", "distribution", "version", "state")) if found["plugins"] else "none"
    put(f"\nPLUGINS OF THIRD PARTIES\n{plugins}")


def _rows(versions: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "version": version} for name, version in versions.items()]
