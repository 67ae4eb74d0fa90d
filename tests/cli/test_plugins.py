"""`xaihub plugins list|info|check`, and the installer that is chosen; installs are tested in third_party/."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from xaihub import ExplainerSpec, hookimpl
from xaihub.cli import cli
from xaihub.cli._app import App
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools import installer, installing

Run = Callable[..., Result]

RENAMED = """
from xaihub import Explainer


class Renamed(Explainer):
    '''Stores its parameter under another name.'''

    def __init__(self, *, steps: int = 3) -> None:
        self.points = steps

    def attribute(self, model, inputs, target):
        return inputs
"""


def test_list_tells_what_each_plugin_registered(run: Run) -> None:
    rows = {row["name"]: row for row in json.loads(run("plugins", "list", "--load", "--json").stdout)}

    assert rows["rise"]["registered"] == {"explainers": ["rise"]}
    assert rows["zoo"]["registered"]["adapters"] == ["timm", "torchvision"]
    assert all(row["distribution"] == "xaihub" and row["seconds"] >= 0 for row in rows.values())
    assert "3 models, 2 adapters" in run("plugins", "list", "--load").stdout


def test_list_tells_what_is_wrong_with_a_plugin() -> None:
    class Plugin:
        @hookimpl
        def xaihub_register_explainers(self) -> list[ExplainerSpec]:
            raise OSError("no luck")

    host = PluginHost(environ={"XAIHUB_LOAD_PLUGINS": ""}).load()
    host.register(Plugin(), name="sick")
    result = CliRunner().invoke(cli, ["plugins", "list", "--load"], obj=App(Hub(host)))

    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("sick ")]
    assert "nothing, see below" in line
    assert result.stderr.count("OSError: no luck") == 1


def test_list_shows_plugins_that_were_registered_by_hand_without_loading_anything(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RENAMED, encoding="utf-8")

    rows = json.loads(run("--plugin", "mine.py", "plugins", "list", "--json").stdout)

    assert [(row["name"], row["state"]) for row in rows if not row["builtin"]] == [("mine", "ready")]


def test_info_shows_files_hooks_records_load_time_and_the_card(run: Run) -> None:
    text = run("plugins", "info", "rise").stdout
    (record,) = json.loads(run("plugins", "info", "rise", "--json").stdout)

    assert text.startswith("rise (built in)\n")
    for part in ("xaihub_register_explainers", "load time", "## Deviations", "xaihub_rise"):
        assert part in text
    assert Path(record["file"]).name == "__init__.py"
    assert record["card"].startswith("# RISE")


def test_info_of_a_distribution_shows_all_its_plugins(run: Run) -> None:
    names = {row["name"] for row in json.loads(run("plugins", "info", "xaihub", "--json").stdout)}

    assert {"rise", "cam", "zoo"} <= names


@pytest.mark.parametrize("command", ["info", "check"])
def test_a_plugin_that_is_not_there_gets_near_names(run: Run, command: str) -> None:
    result = run("plugins", command, "rize")

    assert result.exit_code == 2
    assert "did you mean 'rise'" in result.stderr


def test_an_unknown_command_gets_near_ones(run: Run) -> None:
    result = run("plugins", "instal")

    assert result.exit_code == 2
    assert "there is no command 'instal', did you mean 'install'" in result.stderr


def test_check_prints_a_table_and_exits_with_0_when_all_is_well(run: Run) -> None:
    result = run("plugins", "check", "control_centre", "--only", "constructor_only_stores")

    assert result.exit_code == 0, result.output
    assert "constructor_only_stores  passed" in result.stdout


def test_check_exits_with_1_and_says_what_to_change(run: Run, tmp_path: Path) -> None:
    (tmp_path / "renamed.py").write_text(RENAMED, encoding="utf-8")
    check = ("--plugin", "renamed.py", "plugins", "check", "renamed", "--only", "constructor_only_stores")

    result, records = run(*check), json.loads(run(*check, "--json").stdout)

    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "1 of 1 checks failed: renamed (plugin renamed)"
    assert [(record["outcome"], record["check"]) for record in records] == [("failed", "constructor_only_stores")]
    assert "steps" in records[0]["advice"]


@pytest.fixture
def _no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    found = util.find_spec
    monkeypatch.setattr(installer.util, "find_spec", lambda name: None if name == "pip" else found(name))


@pytest.mark.usefixtures("_no_pip")
def test_without_pip_uv_installs_into_the_running_interpreter_s_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\necho 'error: no luck'\nexit 2\n", encoding="utf-8")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    result = run("plugins", "install", "xaihub-lrp", "--upgrade", "--pre", "-q")

    asked = (tmp_path / "asked").read_text(encoding="utf-8").split()
    assert asked == ["pip", "install", "--python", sys.executable, "--upgrade", "--pre", "xaihub-lrp"]
    assert (result.exit_code, result.stderr) == (1, "error: the installer failed with status 2: no luck\n")


@pytest.mark.usefixtures("_no_pip")
def test_without_pip_and_uv_there_is_one_clear_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = run("plugins", "install", "xaihub-lrp")

    assert result.exit_code == 1
    assert result.stderr == (
        "error: plugins cannot be installed: this environment has no pip, and uv is not on the PATH"
        f" (run {sys.executable} -m ensurepip, or install uv)\n"
    )


def test_a_plugin_that_never_comes_back_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "LISTING_SECONDS", 0.001)

    found = installing.inspect_installed(["xaihub"])

    assert all(plugin.broken for plugin in found)
    assert {problem for plugin in found for problem in plugin.problems} == {
        "loading the plugins took more than 0.001 s"
    }


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["./no-such-folder"], "there is no file or folder './no-such-folder'"),
        (["--pre"], "no package to install"),
        ([], "Missing argument 'PACKAGE... [PIP OPTION]...'"),
    ],
)
def test_what_cannot_be_installed_is_one_clear_line(run: Run, arguments: list[str], reason: str) -> None:
    result = run("plugins", "install", *arguments)

    assert result.exit_code in (1, 2)
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("answer", "wanted"), [("y", "./lens"), ("n", "lens"), ("", "./lens")])
def test_at_a_terminal_the_user_is_asked_whether_a_folder_is_meant(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, wanted: str
) -> None:
    (tmp_path / "lens").mkdir()
    (tmp_path / "lens" / "pyproject.toml").touch()
    asked: list[list[str]] = []
    monkeypatch.setattr(installing, "install", lambda names, **_: asked.append(list(names)) or [])
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sys.modules["xaihub.cli.plugins"], "sys", terminal)

    result = run("plugins", "install", "lens", "xaihub-other", stdin=f"{answer}\n".encode())

    assert result.exit_code == 0, result.stderr
    assert "Install the folder './lens'? (no: the package 'lens' from the package index) [Y/n]" in result.stderr
    assert asked == [[wanted, "xaihub-other"]]


def test_info_separates_long_kinds_from_their_names(run: Run) -> None:
    text = run("plugins", "info", "scores_activation").stdout

    assert "  global explainers " in text
