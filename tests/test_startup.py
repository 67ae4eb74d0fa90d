"""Listing and help import nothing heavy, so that every command starts fast."""

from __future__ import annotations

import importlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from xaihub.cli import COMMANDS, cli
from xaihub.cli._remembered import Remembered
from xaihub.files import user_folder
from xaihub.hub.host import HEAVY

# Runs the real command line in a fresh interpreter, command after command, and reports on stderr's last line what each
# returned and what was imported by then.
RUNNER = """
import json, sys
from xaihub.cli import main
reports = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["xaihub", *arguments]
    code = 0
    try:
        main()
    except SystemExit as left:
        code = left.code or 0
    reports.append([code, sorted(sys.modules)])
sys.stderr.write("\\n" + json.dumps(reports))
"""
# About 0.15 s on an idle machine, and more on a busy one; one heavy import costs several seconds.
LIMIT_SECONDS = 1.5
# Of `xaihub --help` beside `python -c pass`, when nothing has changed since the last time.
HELP_RATIO = 7.5

LIGHT = [
    ("--help",),
    ("--version",),
    ("list",),
    ("list", "explainers", "--json"),
    ("list", "models"),
    ("list", "adapters"),
    ("list", "metrics"),
    ("list", "plugins"),
    ("plugins", "list"),
    ("plugins", "info", "rise"),
    *((name, "--help") for name in cli.commands),
]


def heavy(*commands: tuple[str, ...]) -> dict[str, tuple[int, set[str]]]:
    """What each command returns, and which heavy libraries are imported when it ends."""
    command = [sys.executable, "-c", RUNNER, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    reports = json.loads(done.stderr.splitlines()[-1])
    return {
        " ".join(words): (code, {name.partition(".")[0] for name in modules} & set(HEAVY))
        for words, (code, modules) in zip(commands, reports, strict=True)
    }


def test_nothing_heavy_is_imported() -> None:
    assert heavy(*LIGHT) == {" ".join(words): (0, set()) for words in LIGHT}


def test_the_watch_for_heavy_imports_sees_one() -> None:
    # `show` reads an explainer's parameters off its class, which needs torch.
    assert "torch" in heavy(("list",), ("show", "rise"))["show rise"][1]


def seconds(*arguments: str) -> float:
    """The CPU time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_listing_costs_a_fraction_of_a_second_of_cpu_time() -> None:
    listing = ("-m", "xaihub", "list")
    seconds(*listing)  # writes the byte code

    assert seconds(*listing) < LIMIT_SECONDS


def test_help_costs_a_few_times_what_bare_python_does() -> None:
    helping = ("-m", "xaihub", "--help")
    seconds(*helping)  # remembers the commands of plugins
    pairs = [(seconds("-c", "pass"), seconds(*helping)) for _ in range(5)]
    bare, ours = (sorted(times)[2] for times in zip(*pairs, strict=True))
    print(f"xaihub --help: {ours:.3f} s of CPU time, bare Python {bare:.3f} s")  # noqa: T201 - shown with -s

    # Clock ticks of the kernel blur times this short, so that the absolute limit counts too.
    assert ours < max(0.15, HELP_RATIO * bare)


def test_the_list_of_commands_has_the_first_sentence_of_each() -> None:
    assert {name: line for name, (_, line) in COMMANDS.items()} == {
        name: command.get_short_help_str(200) for name, command in cli.commands.items()
    }


@pytest.fixture
def remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on the path, whose import `Remembered` is to watch."""
    module = tmp_path / "remembered_commands.py"
    module.write_text("NAME = 'one'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, module.stem, raising=False)
    return module


def keep(module: Path) -> None:
    memory = Remembered("commands")
    with memory.watching():
        importlib.import_module(module.stem)
    memory.keep({"a": "text"})


def test_what_plugins_said_is_remembered(remembered: Path) -> None:
    assert Remembered("commands").recall() is None
    keep(remembered)
    assert Remembered("commands").recall() == {"a": "text"}


@pytest.mark.parametrize("change", ["file", "environment", "distribution", "damage"])
def test_nothing_is_remembered_after_a_change(
    remembered: Path, change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep(remembered)
    if change == "file":
        remembered.write_text("NAME = 'two words'")
    elif change == "environment":
        monkeypatch.setenv("XAIHUB_LOAD_PLUGINS", "")
    elif change == "distribution":
        (tmp_path / "new-1.0.dist-info").mkdir()
    else:
        (user_folder("state") / "commands.json").write_text('{"world": [')

    assert Remembered("commands").recall() is None


def test_the_python_door_opens_without_torch() -> None:
    script = "import sys, xaihub; print([name for name in sys.modules if name in ('torch', 'numpy', 'click', 'yaml')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
