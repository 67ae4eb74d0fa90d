"""The published schemas of what commands print with --json; conftest.py validates what the other tests print."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from pydantic import ValidationError

from docs.outputs import OUTPUTS
from docs.schemas import FOLDER, files, validate
from xaihub.cli import cli


def test_published_schemas_are_up_to_date() -> None:
    assert {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()} == files(), "run `make api`"


def test_every_command_of_the_core_with_json_has_a_schema() -> None:
    assert {name for name, command in _commands(cli) if _has_json(command) and _is_core(command)} == set(OUTPUTS)


@pytest.mark.parametrize(
    ("command", "text"),
    [("info", '{"xaihub": "1"}'), ("compare", '{"png": 1, "explanations": []}'), ("list", '[{"summary": "unnamed"}]')],
)
def test_an_output_that_breaks_its_schema_is_found(command: str, text: str) -> None:
    with pytest.raises(ValidationError):
        validate(command, text)


def _commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def _has_json(command: click.Command) -> bool:
    return any("--json" in item.opts for item in command.params)


def _is_core(command: click.Command) -> bool:
    return getattr(command.callback, "__module__", "").startswith("xaihub.")
