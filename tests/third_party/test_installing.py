"""Installing and removing plugins in a fresh environment, also when it is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest


def test_a_plugin_that_is_broken_is_reported_with_the_command_that_removes_it(fresh: Any) -> None:
    folder = fresh.project(fresh.work / "xaihub-sick", "import a_library_that_is_not_there\n")

    done = fresh.xaihub("plugins", "install", folder, "-q")

    assert done.returncode == 1
    assert done.stdout == ""
    assert "plugin sick (xaihub-sick 0.3): skipped, failed while importing it: ModuleNotFoundError" in done.stderr
    assert "(remove it: xaihub plugins uninstall xaihub-sick)" in done.stderr


def test_an_install_reports_clashes_load_time_and_heavy_imports(fresh: Any) -> None:
    folder = fresh.project(fresh.work / "xaihub-heavy", "import numpy\n" + fresh.good("rise"))

    done = fresh.xaihub("plugins", "install", folder, "--quiet", "--json")

    assert done.returncode == 0, done.stderr
    (plugin,) = json.loads(done.stdout)
    assert plugin["registered"] == {"explainers": ["heavy/rise"]}
    assert plugin["heavy"] == ["numpy"]
    assert plugin["seconds"] > 0.01
    assert "explainer 'rise' belongs to plugin 'rise'; use 'heavy/rise'" in plugin["problems"]


def test_one_that_ends_the_interpreter_is_reported_and_can_be_removed(fresh: Any) -> None:
    folder = fresh.project(fresh.work / "xaihub-killer", "import ctypes\nctypes.CDLL(None)._exit(7)\n")

    done = fresh.xaihub("plugins", "install", folder, "-q")

    assert done.returncode == 1
    assert "plugin killer (xaihub-killer 0.3): skipped, because a process ended while importing it" in done.stderr
    assert "(remove it: xaihub plugins uninstall xaihub-killer)" in done.stderr
    listed = fresh.xaihub("list")
    assert listed.returncode == 0
    assert listed.stderr.count("'killer'") == 1
    assert fresh.xaihub("plugins", "uninstall", "-y", "killer").returncode == 0
    assert fresh.xaihub("list").stderr == ""


def test_one_that_ends_the_interpreter_does_not_make_another_look_broken(fresh: Any) -> None:
    fresh.plant("killer", "import ctypes\nctypes.CDLL(None)._exit(7)\n")
    folder = fresh.project(fresh.work / "xaihub-fine", fresh.good("fine"))

    done = fresh.xaihub("plugins", "install", folder, "-q", "--json")

    assert done.returncode == 0, done.stderr
    (plugin,) = json.loads(done.stdout)
    assert (plugin["registered"], plugin["problems"]) == ({"explainers": ["fine"]}, [])


def test_installing_again_loads_a_plugin_again_that_was_skipped(fresh: Any) -> None:
    folder = fresh.project(fresh.work / "xaihub-killer", "import ctypes\nctypes.CDLL(None)._exit(7)\n")
    assert fresh.xaihub("plugins", "install", "--editable", folder, "-q").returncode == 1
    (folder / "xaihub_killer" / "__init__.py").write_text(fresh.good("killer"), encoding="utf-8")
    assert "skipped" in fresh.xaihub("list").stderr

    done = fresh.xaihub("plugins", "install", "--editable", folder, "-q")

    assert done.returncode == 0, done.stderr
    assert fresh.xaihub("list").stderr == ""


@pytest.mark.parametrize("editable", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_folder_can_be_installed_a_second_time_also_as_a_dot(fresh: Any, editable: bool) -> None:
    folder = fresh.project(fresh.work / "oddly-named", fresh.good("oddly-named".replace("-", "_")))
    options = ["--editable"] * editable
    for target in (".", str(folder)):
        done = fresh.run(fresh.home / "bin/xaihub", "plugins", "install", *options, target, "-q", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert "adds explainers: oddly_named" in done.stdout


def test_a_folder_comes_before_a_package_of_its_name(fresh: Any) -> None:
    fresh.project(fresh.work / "xaihub-local", fresh.good("local"))

    done = fresh.xaihub("plugins", "install", "xaihub-local", "-q")

    assert done.returncode == 0, done.stderr
    assert "note: installing the folder './xaihub-local'; for the package of that name, write 'xaihub-local>=0'" in (
        done.stderr
    )
    assert "local (xaihub-local 0.3) adds explainers: local" in done.stdout
    # The package does not exist: there is no index here.
    assert "xaihub-local" in fresh.xaihub("plugins", "install", "xaihub-local>=99", "-q").stderr


def test_a_folder_without_a_project_is_not_mistaken_for_a_package(fresh: Any) -> None:
    (fresh.work / "cd").mkdir()

    done = fresh.xaihub("plugins", "install", "cd", "-q")

    assert (done.returncode, done.stderr) == (
        1,
        "error: 'cd' is a folder here, without a pyproject.toml (for the package of that name, write 'cd>=0')\n",
    )


SLOW = (
    "import sys, time, pathlib\n"
    "def get_requires_for_build_wheel(config_settings=None): return []\n"
    "def build_wheel(*args, **kwargs):\n"
    "    pathlib.Path('building').touch()\n    time.sleep(100)\n"
)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_interrupting_the_build_leaves_nothing_and_the_next_install_works(fresh: Any) -> None:
    before = fresh.installed()
    folder = fresh.project(fresh.work / "xaihub-slow", fresh.good("slow"), backend=SLOW)
    process = fresh.start("plugins", "install", folder)
    wait_for(folder / "building")

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)

    assert process.returncode == 130
    assert said.splitlines()[-1] == "error: interrupted before anything was written (nothing has changed)"
    assert fresh.installed() == before
    assert fresh.xaihub("list").stderr == ""
    shutil.rmtree(folder)
    fresh.project(folder, fresh.good("slow"))
    assert fresh.xaihub("plugins", "install", folder, "-q").returncode == 0


def large_wheel(folder: Path, source: str) -> Path:
    """A plugin with so many files that writing them takes a moment."""
    wheel = folder / "xaihub_large-0.3-py3-none-any.whl"
    info = "xaihub_large-0.3.dist-info"
    files = {f"xaihub_large/part{number}.py": f"number = {number}\n" for number in range(800)}
    files |= {
        "xaihub_large/__init__.py": source,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: xaihub-large\nVersion: 0.3\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[xaihub]\nlarge = xaihub_large\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    return wheel


def started_writing(fresh: Any, wheel: Path) -> subprocess.Popen[str]:
    process = fresh.start("plugins", "install", wheel)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("Installing collected packages"):
        assert process.poll() is None
    wait_for(fresh.site / "xaihub_large")
    return process


@pytest.mark.slow
def test_interrupting_the_writing_waits_for_its_end_and_says_how_to_undo_it(fresh: Any) -> None:
    before = fresh.installed()
    process = started_writing(fresh, large_wheel(fresh.work, fresh.good("large")))

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)

    assert process.returncode == 130
    undo = "error: interrupted after the installation had completed (undo it: xaihub plugins uninstall xaihub-large)"
    assert said.splitlines()[-1] == undo
    assert "large" in fresh.xaihub("list", "explainers").stdout
    assert fresh.xaihub("plugins", "uninstall", "xaihub-large", "-y").returncode == 0
    assert fresh.installed() == before


def test_killing_the_installer_while_it_writes_leaves_an_environment_that_works(fresh: Any) -> None:
    before = fresh.installed()
    wheel = large_wheel(fresh.work, fresh.good("large"))
    process = started_writing(fresh, wheel)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()

    for child in children:
        os.kill(int(child), signal.SIGKILL)
    process.communicate(timeout=600)

    assert process.returncode == 1
    assert fresh.installed() != before
    assert fresh.xaihub("list").returncode == 0
    assert fresh.xaihub("plugins", "install", wheel, "-q").returncode == 0
    assert fresh.xaihub("plugins", "uninstall", "large", "-y").returncode == 0
    assert fresh.installed() == before


@pytest.mark.slow
def test_what_a_killed_installer_left_before_it_named_the_plugin_is_installed_anew(fresh: Any) -> None:
    before = fresh.installed()
    wheel = large_wheel(fresh.work, fresh.good("large"))
    fresh.plant("large", fresh.good("large"))
    for name in ("RECORD", "entry_points.txt"):
        (fresh.site / "xaihub_large-0.3.dist-info" / name).unlink()
    (fresh.site / "xaihub_large.py").unlink()

    done = fresh.xaihub("plugins", "install", wheel, "-q")

    assert done.returncode == 0, done.stderr
    assert fresh.xaihub("plugins", "uninstall", "large", "-y").returncode == 0
    assert fresh.installed() == before


def test_a_distribution_whose_list_of_files_was_never_written_is_removed_all_the_same(fresh: Any) -> None:
    before = fresh.installed()
    fresh.plant("torn", fresh.good("torn"))
    (fresh.site / "xaihub_torn-0.3.dist-info" / "RECORD").unlink()

    done = fresh.xaihub("plugins", "uninstall", "-y", "torn")

    assert done.returncode == 0, done.stderr
    assert fresh.installed() == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("xaihub", "error: xaihub itself is not a plugin (remove it: pip uninstall xaihub)"),
        ("rise", "error: plugin 'rise' is part of xaihub and cannot be removed alone"),
        ("pluggy", "error: 'pluggy' is not a plugin of xaihub and is not removed (use pip uninstall pluggy)"),
        ("no-such", "error: no plugin is named 'no-such' (xaihub plugins list shows every plugin)"),
    ],
)
def test_what_is_no_plugin_is_not_removed(fresh: Any, name: str, reason: str) -> None:
    before = fresh.installed()

    done = fresh.xaihub("plugins", "uninstall", "-y", name)

    assert done.returncode in (1, 2)
    assert done.stderr.strip() == reason
    assert fresh.installed() == before


def test_what_is_installed_but_no_plugin_is_said_with_the_command_that_removes_it(fresh: Any) -> None:
    folder = fresh.project(fresh.work / "xaihub-plain", "")
    file = folder / "pyproject.toml"
    text = file.read_text(encoding="utf-8").replace("entry-points.xaihub", "entry-points.other")
    file.write_text(text, encoding="utf-8")

    done = fresh.xaihub("plugins", "install", folder, "-q")

    assert done.returncode == 1
    assert "which is not a plugin: it has no entry point in the group 'xaihub'" in done.stderr
    assert "(remove it: pip uninstall xaihub-plain)" in done.stderr
