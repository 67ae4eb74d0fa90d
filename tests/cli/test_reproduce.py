"""`xaihub reproduce`, with one experiment that a plugin brings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from xaihub import Paper, ReproductionSpec, hookimpl
from xaihub.cli import cli
from xaihub.cli._app import App
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost

Run = Callable[..., Result]


@click.command()
@click.option("--seeds", default=1)
def experiment(seeds: int) -> None:
    """Count to one."""
    click.echo(f"seeds {seeds}")


no_command = "a text"


class Plugin:
    @hookimpl
    def xaihub_register_reproductions(self) -> list[ReproductionSpec]:
        paper = Paper(title="On \x1b[31mcounting", year=2001, url="https://example.org")
        target = f"{__name__}:experiment"
        return [
            ReproductionSpec(name="counting", target=target, summary="Count.", paper=paper),
            ReproductionSpec(name="broken", target=f"{__name__}:no_command", summary="No command."),
            ReproductionSpec(name="missing", target="no_such_module_anywhere:thing", summary="No module."),
        ]


@pytest.fixture
def reproduce() -> Run:
    host = PluginHost().load()
    host.register(Plugin(), name="extra")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["reproduce", *arguments], obj=App(Hub(host)), prog_name="xaihub")

    return run


def test_the_help_lists_every_experiment_with_its_paper_and_no_control_characters(reproduce: Run) -> None:
    shown = reproduce("--help").output
    assert "counting" in shown
    assert "2001" in shown
    assert "\x1b" not in shown


def test_an_experiment_takes_its_own_options(reproduce: Run) -> None:
    result = reproduce("counting", "--seeds", "3")
    assert result.exit_code == 0, result.output
    assert result.output == "seeds 3\n"


def test_an_unknown_experiment_is_one_line_with_the_near_name(reproduce: Run) -> None:
    result = reproduce("countin")
    assert result.exit_code == 2
    assert "no reproduction is named 'countin'" in result.output
    assert "counting" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("name", "why"), [("broken", "is not a click command"), ("missing", "there is no module")])
def test_an_experiment_that_cannot_be_loaded_names_its_plugin(reproduce: Run, name: str, why: str) -> None:
    result = reproduce(name)
    assert result.exit_code == 1
    assert "plugin 'extra'" in result.output
    assert why in result.output


def test_listing_experiments_imports_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from xaihub.cli import cli;"
        "r = CliRunner().invoke(cli, ['reproduce', '--help']); assert r.exit_code == 0, r.output;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
