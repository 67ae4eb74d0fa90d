"""Listing and help import nothing heavy, so that every command starts fast."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from xaihub.cli import cli
from xaihub.hub.host import HEAVY

# Runs the real command line in a fresh interpreter, and reports on stderr's last line what it imported.
RUNNER = """
import json, resource, sys
from xaihub.cli import main
sys.argv = ["xaihub", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as left:
    code = left.code or 0
used = resource.getrusage(resource.RUSAGE_SELF)
report = {"code": code, "modules": sorted(sys.modules), "seconds": used.ru_utime + used.ru_stime}
sys.stderr.write("\\n" + json.dumps(report))
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


def started(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "-c", RUNNER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, object] = json.loads(done.stderr.splitlines()[-1])
    return report


def imported(report: dict[str, object]) -> set[str]:
    modules = report["modules"]
    assert isinstance(modules, list)
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_nothing_heavy_is_imported(arguments: tuple[str, ...]) -> None:
    report = started(*arguments)

    assert report["code"] == 0
    assert imported(report) & set(HEAVY) == set()


def test_the_watch_for_heavy_imports_sees_one() -> None:
    # `show` reads an explainer's parameters off its class, which needs torch.
    assert "torch" in imported(started("show", "rise"))


@pytest.fixture
def seconds() -> float:
    """The CPU time of a warm `xaihub list`."""
    started("list")  # writes the byte code
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "xaihub", "list"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_listing_costs_a_fraction_of_a_second_of_cpu_time(seconds: float) -> None:
    print(f"xaihub list: {seconds:.3f} s of CPU time")  # noqa: T201 - shown with -s

    assert seconds < LIMIT_SECONDS


def test_the_python_door_opens_without_torch() -> None:
    script = "import sys, xaihub; print([name for name in sys.modules if name in ('torch', 'numpy', 'click', 'yaml')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
