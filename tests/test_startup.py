"""Listing and help import nothing heavy, so that every command starts fast."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from xaihub.cli import cli
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


@pytest.fixture
def seconds() -> float:
    """The CPU time of a warm `xaihub list`."""
    listing = [sys.executable, "-m", "xaihub", "list"]
    subprocess.run(listing, capture_output=True, check=True)  # writes the byte code
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(listing, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_listing_costs_a_fraction_of_a_second_of_cpu_time(seconds: float) -> None:
    print(f"xaihub list: {seconds:.3f} s of CPU time")  # noqa: T201 - shown with -s

    assert seconds < LIMIT_SECONDS


def test_the_python_door_opens_without_torch() -> None:
    script = "import sys, xaihub; print([name for name in sys.modules if name in ('torch', 'numpy', 'click', 'yaml')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
