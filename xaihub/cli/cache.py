"""`xaihub cache`: list, clear."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from xaihub.cli._app import App, Family
from xaihub.cli._options import json_option
from xaihub.cli._output import put, put_json, table

if TYPE_CHECKING:
    from xaihub.models.cache import Entry


@click.group(cls=Family)
def cache() -> None:
    """Show or delete what is kept between commands.

    These are models that a backend compiled, and the batch sizes that were found fastest. All of it is made again when
    it is needed, and what was used longest ago is deleted beyond 2 GiB. The folder is the platform's, or XAIHUB_CACHE.

    \b
    Examples:
      xaihub cache list
      xaihub cache clear compiled
    """


@cache.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """List what is kept, the most recently used first.

    \b
    Examples:
      xaihub cache list
      xaihub cache list --json
    """
    from xaihub.models.cache import entries

    rows = [_row(entry) for entry in entries()]
    if as_json:
        put_json(rows)
        return
    put(table([{**row, "size": _size(row["bytes"])} for row in rows], ("kind", "about", "size", "used")))
    put(f"{len(rows)} entries, {_size(sum(row['bytes'] for row in rows))}")


@cache.command()
@click.argument("kind", default="", required=False)
@click.pass_obj
def clear(_app: App, /, kind: str) -> None:
    """Delete what is kept, or only one KIND of it.

    \b
    Examples:
      xaihub cache clear
      xaihub cache clear batches
    """
    from xaihub.models.cache import clear as delete

    deleted = delete(kind)
    put(f"{len(deleted)} entries deleted, {_size(sum(entry.size for entry in deleted))}")


def _row(entry: Entry) -> dict[str, Any]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    return {"kind": entry.kind, "about": entry.about, "bytes": entry.size, "used": used}


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count} bytes"
