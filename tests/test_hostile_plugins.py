"""Plugins that end, hang or change the process while they are loaded: each costs only itself, and is named once."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.plugins_on_disk import GOOD, Site
from xaihub.hub.quarantine import LIMIT

LEAVE = "import ctypes\nctypes.CDLL(None)._exit"
HOOK = "from xaihub import hookimpl\n@hookimpl\ndef xaihub_register_metrics():\n"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.add("alpha")
    made.add("zeta")
    return made


def explainers(site: Site) -> tuple[set[str], list[str]]:
    """The third-party explainers, and the lines on stderr."""
    done = site.run("list", "explainers", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    return {row["name"] for row in rows if row["plugin"] in site.names}, done.stderr.splitlines()


# Their process lives on: they are contained by the command that loads them.
CONTAINED = {
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "exit": ("raise SystemExit(0)", "SystemExit: 0"),
    "base": ("class Odd(BaseException): pass\nraise Odd('x')", "Odd: x"),
    "os_exit": ("import os\nos._exit(7)", "SystemExit: os._exit(7) ends the program"),
    "os_exit_0": ("from os import _exit\n_exit(0)", "SystemExit: os._exit(0) ends the program"),
    "exec": ("import os\nos.execlp('true', 'true')", "ends the program"),
    "hook_exit": (f"{HOOK}    import os\n    os._exit(3)", "calling xaihub_register_metrics: SystemExit"),
    "generator_exit": ("raise GeneratorExit", "GeneratorExit"),
    "str_raises": (
        "class Odd(Exception):\n    def __str__(self): raise RuntimeError\nraise Odd",
        "Odd: (its text cannot be read)",
    ),
    "str_exits": (
        "class Odd(Exception):\n    def __str__(self): raise SystemExit(3)\nraise Odd",
        "Odd: (its text cannot be read)",
    ),
    "endless": (f"{HOOK}    while True:\n        yield None", "returned more than 10,000 records"),
    "hook_interrupt": (f"{HOOK}    raise KeyboardInterrupt", "KeyboardInterrupt"),
    "recursion": ("def f(): f()\nf()", "RecursionError"),
    "memory": ("raise MemoryError", "MemoryError"),
    "group": ("raise BaseExceptionGroup('g', [KeyboardInterrupt()])", "BaseExceptionGroup"),
}
# They work themselves, but would make others fail.
CHANGING = {
    "chdir": ("import os\nos.chdir('/')", "the working directory"),
    "recursion_limit": ("import sys\nsys.setrecursionlimit(60)", "the recursion limit"),
    "environment": ("import os\nos.environ.clear()", "the environment variables"),
    "path": ("import sys\nsys.path.clear()", "the order of sys.path"),
    "handlers": ("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)", "the handlers of signals"),
    "streams": ("import sys\nsys.stderr = sys.stdin = None", "sys.stderr"),
    "builtins": ("import builtins\nbuiltins.sorted = None", "built-in functions"),
    "umask": ("import os\nos.umask(0o777)", "the file mode mask"),
    "warnings": ("import warnings\nwarnings.simplefilter('error')", "warning filters"),
    "seed": ("import random\nrandom.seed(0)", "Python's random state"),
}


# All of them are loaded together below; alone, most of them only in the nightly run.
FAST = {"interrupt", "str_raises", "endless", "chdir", "recursion_limit", "os_exit_0", "native_exit"}


def alone(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", alone(CONTAINED))
def test_whatever_a_plugin_raises_costs_only_itself(site: Site, name: str) -> None:
    source, reason = CONTAINED[name]
    site.add("bad", source)

    found, lines = explainers(site)

    assert found == {"alpha", "zeta"}
    (line,) = lines
    assert line.startswith("warning: plugin 'bad' (xaihub-bad 0.3): skipped, failed while ")
    assert reason in line
    assert line.endswith("(remove it: xaihub plugins uninstall xaihub-bad)")


@pytest.mark.parametrize("name", alone(CHANGING))
def test_what_a_plugin_changes_in_the_process_is_restored_and_blames_nobody_else(site: Site, name: str) -> None:
    source, setting = CHANGING[name]
    site.add("bad", f"import random\nrandom.random()\n{source}\n" + GOOD.format(name="bad"))
    site.add("before_zeta", "import os, random\nassert len(os.environ) > 1\n" + GOOD.format(name="before_zeta"))

    found, lines = explainers(site)

    assert found == {"alpha", "bad", "before_zeta", "zeta"}
    (line,) = lines
    assert line.startswith("warning: plugin 'bad' (xaihub-bad 0.3): changed ")
    assert setting in line
    assert "while importing it; restored" in line


def test_all_of_them_together_leave_the_good_ones_alone(site: Site) -> None:
    for name, (source, _) in (CONTAINED | CHANGING).items():
        site.add(f"m_{name}", source)

    found, lines = explainers(site)

    assert found == {"alpha", "zeta"}
    assert len(lines) == len(CONTAINED | CHANGING)
    assert all(sum(f"plugin 'm_{name}' " in line for line in lines) == 1 for name in CONTAINED | CHANGING)


# They take the process with them.
ENDING = {
    "native_exit": (f"{LEAVE}(7)", 7, "importing it"),
    "segfault": ("import ctypes\nctypes.string_at(0)", -signal.SIGSEGV, "importing it"),
    "abort": ("import os\nos.abort()", -signal.SIGABRT, "importing it"),
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "importing it"),
    "hook_exit_natively": (
        f"{HOOK}    from ctypes import CDLL\n    CDLL(None)._exit(3)",
        3,
        "calling xaihub_register_metrics",
    ),
}


@pytest.mark.parametrize("name", alone(ENDING))
def test_one_that_ends_the_process_is_named_and_skipped_by_the_next_command(site: Site, name: str) -> None:
    source, code, step = ENDING[name]
    site.add("bad", source)

    first = site.run("list", "metrics")
    found, lines = explainers(site)

    assert first.returncode == code
    assert found == {"alpha", "zeta"}
    (line,) = lines
    assert f"plugin 'bad' (xaihub-bad 0.3): skipped, because a process ended while {step} (20" in line
    assert line.endswith("(try again: xaihub plugins retry bad; remove it: xaihub plugins uninstall xaihub-bad)")
    assert explainers(site)[1] == lines  # and by all later ones


def test_one_that_was_skipped_is_loaded_again_on_request_or_in_another_version(site: Site) -> None:
    site.add("bad", f"{LEAVE}(7)")
    assert site.run("list").returncode == 7
    file = site.folder / "xaihub_bad.py"

    listed = {row["name"]: row for row in json.loads(site.run("plugins", "list", "--json").stdout)}
    assert listed["bad"]["state"] == "skipped"
    file.write_text(GOOD.format(name="bad"), encoding="utf-8")
    assert explainers(site)[0] == {"alpha", "zeta"}
    assert site.run("plugins", "retry", "xaihub-bad").stdout == "the next command loads bad again\n"
    assert explainers(site) == ({"alpha", "bad", "zeta"}, [])
    again = site.run("plugins", "retry", "bad")
    assert (again.returncode, again.stderr.startswith("error: plugin 'bad' is not skipped")) == (1, True)

    file.write_text(f"{LEAVE}(7)", encoding="utf-8")
    assert site.run("list").returncode == 7
    file.write_text(GOOD.format(name="bad"), encoding="utf-8")
    (site.folder / "xaihub_bad-0.3.dist-info").rename(site.folder / "xaihub_bad-0.4.dist-info")
    metadata = site.folder / "xaihub_bad-0.4.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text(encoding="utf-8").replace("0.3", "0.4"), encoding="utf-8")
    assert explainers(site) == ({"alpha", "bad", "zeta"}, [])


SLEEPS = "import sys, time\nsys.stderr.write('asleep\\n')\nsys.stderr.flush()\ntime.sleep(60)\n"


@pytest.mark.parametrize("patience", [0.0, 2.2])
def test_ctrl_c_during_a_load_stops_the_command_and_names_the_plugin(site: Site, patience: float) -> None:
    site.add("sleepy", SLEEPS)
    process = site.start("list")
    assert process.stderr is not None
    assert process.stderr.readline() == "asleep\n"
    time.sleep(patience)

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    last = said.strip().splitlines()[-1]
    assert last.startswith("stopped while importing it: plugin 'sleepy' (xaihub-sleepy 0.3)")
    # One that seems to hang is skipped from then on; an early Ctrl-C blames nobody.
    assert ("later commands skip it (try again: xaihub plugins retry sleepy)" in last) == (patience > 0)
    assert ("importing it takes more than 2 s: plugin 'sleepy'" in said) == (patience > 0)
    if patience:
        (line,) = explainers(site)[1]
        assert "plugin 'sleepy' (xaihub-sleepy 0.3): skipped, because it was interrupted after 2 s" in line


def test_one_that_swallows_ctrl_c_ends_with_the_third(site: Site) -> None:
    swallow = "while True:\n    try:\n        time.sleep(60)\n    except BaseException:\n"
    site.add("deaf", SLEEPS.replace("time.sleep(60)\n", swallow + "        sys.stderr.write('no\\n')\n"))
    process = site.start("list")
    assert process.stderr is not None
    assert process.stderr.readline() == "asleep\n"

    for _ in range(3):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    assert process.returncode == -signal.SIGINT
    assert "skipped, because a process ended while importing it" in explainers(site)[1][0]


@pytest.mark.slow
def test_a_plugin_that_another_process_is_loading_is_not_blamed_before_the_limit(site: Site) -> None:
    site.add("sleepy", SLEEPS.replace("60", "4"))
    process = site.start("list")
    assert process.stderr is not None
    assert process.stderr.readline() == "asleep\n"

    listed = {row["name"]: row for row in json.loads(site.run("plugins", "list", "--json").stdout)}
    assert listed["sleepy"]["state"] == "new"
    process.communicate(timeout=60)

    assert process.returncode == 0


def test_one_that_hangs_in_another_process_is_skipped_after_the_limit(site: Site) -> None:
    site.add("sleepy", SLEEPS)
    process = site.start("list")
    assert process.stderr is not None
    assert process.stderr.readline() == "asleep\n"
    (note,) = (site.folder.parent / "state").rglob("loading/*")
    os.utime(note, (time.time() - 2 * LIMIT,) * 2)

    (line,) = explainers(site)[1]
    process.kill()
    process.communicate(timeout=60)

    assert "plugin 'sleepy' (xaihub-sleepy 0.3): skipped, because another process has been importing it for" in line


def test_one_that_never_ends_is_stopped_at_the_limit_and_skipped_from_then_on(site: Site) -> None:
    site.add("sleepy", SLEEPS)
    command = "from xaihub.hub import host; host.PATIENCE, host.LIMIT = 0.1, 0.5; from xaihub.cli import main; main()"

    done = site.python("-c", command, "list", "explainers", "--json", timeout=30)

    assert done.returncode == 0, done.stderr
    assert {"alpha", "zeta"} <= {row["name"] for row in json.loads(done.stdout)}
    assert "plugin 'sleepy' (xaihub-sleepy 0.3): skipped, failed while importing it: TimeoutError" in done.stderr
    (line,) = explainers(site)[1]
    assert "skipped, because it was stopped after 0.5 s of importing it" in line


def test_without_a_folder_for_state_everything_works(site: Site) -> None:
    site.environment["XAIHUB_STATE"] = "/proc/nowhere"

    assert explainers(site) == ({"alpha", "zeta"}, [])


PRINTS = """
import ctypes, os, sys
print("from print")
sys.__stdout__.write("from sys.__stdout__\\n")
os.write(1, b"from the file descriptor\\n")
os.system("echo from a child")
ctypes.CDLL(None).printf(b"from the C library\\n")
"""


@pytest.mark.parametrize("command", [("list", "explainers", "--json"), ("plugins", "list", "--load", "--json")])
def test_what_a_plugin_prints_in_any_way_never_reaches_the_stdout_of_json(site: Site, command: tuple[str, ...]) -> None:
    site.add("chatty", PRINTS + GOOD.format(name="chatty"))

    done = site.run(*command)

    assert json.loads(done.stdout)
    for source in ("print", "sys.__stdout__", "the file descriptor", "a child", "the C library"):
        assert done.stderr.count(f"from {source}\n") == 1


class TestListingFromMetadata:
    def test_it_imports_no_plugin_and_names_every_state(self, site: Site) -> None:
        site.add("slow", "import time\ntime.sleep(0.6)\n" + GOOD.format(name="slow"))
        site.add("failing", "1 / 0")
        site.add("future", requires="xaihub>=99")
        site.add("lonely", requires="a-library-that-is-not-there>=1")
        site.run("list")
        for name in ("alpha", "slow", "failing", "future", "lonely"):
            (site.folder / f"xaihub_{name}.py").write_text("import os\nos._exit(9)\n", encoding="utf-8")
        site.add("fresh", "import os\nos._exit(9)\n")
        site.add("hidden")
        site.environment["XAIHUB_LOAD_PLUGINS"] = ",".join(set(site.names) - {"hidden"})

        done = site.run("plugins", "list", "--json")

        assert (done.returncode, done.stderr) == (0, "")
        rows = {row["name"]: row for row in json.loads(done.stdout)}
        states = {name: rows[name]["state"] for name in site.names}
        assert states == {
            "alpha": "ready", "zeta": "ready", "slow": "ready", "failing": "failed", "future": "conflict",
            "lonely": "conflict", "fresh": "new", "hidden": "off",
        }  # fmt: skip
        assert rows["rise"]["state"] == "built in"
        assert rows["slow"]["seconds"] > 0.5
        assert "s to load, which delays every command" in rows["slow"]["problems"][0]
        assert rows["alpha"]["problems"] == []
        assert "ZeroDivisionError" in rows["failing"]["problems"][0]
        assert rows["future"]["problems"][0].startswith("needs xaihub>=99, but ")
        assert rows["lonely"]["problems"] == ["needs a-library-that-is-not-there, which is not installed"]
        assert all(rows[name]["version"] == "0.3" for name in site.names)
        text = site.run("plugins", "list").stdout
        assert "ready: takes 0." in text

    def test_unreadable_entry_points_are_listed(self, site: Site) -> None:
        site.add("sick", points="[xaihub]\nthis line has no equals sign\n")

        rows = json.loads(site.run("plugins", "list", "--json").stdout)

        (row,) = [row for row in rows if row["state"] == "unreadable"]
        assert row["distribution"] == "xaihub-sick"
        assert "its entry points cannot be read" in row["problems"][0]
