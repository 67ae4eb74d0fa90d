"""Third-party plugins in a fresh environment, into which xaihub was installed from its wheel."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


class Fresh:
    """An environment with its own site-packages, and a folder to work in."""

    def __init__(self, home: Path, work: Path) -> None:
        self.home = home
        self.site = home / SITE
        self.work = work
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL", "XAIHUB"))}
        # Nothing is downloaded: the build backend is there already, and so is whatever a plugin needs.
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": os.devnull}
        self.environment = {**kept, **offline, "PATH": f"{home / 'bin'}{os.pathsep}{kept['PATH']}", "COLUMNS": "200"}

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*map(str, command)],
            cwd=self.work,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def xaihub(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.home / "bin" / "xaihub", *arguments, **environment)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start xaihub in the background; what it says on stderr can be read line by line."""
        command = [*map(str, (self.home / "bin" / "xaihub", *arguments))]
        return subprocess.Popen(
            command,
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def installed(self) -> set[str]:
        """Everything in site-packages and among the programs, but for byte code."""
        files = [*self.site.rglob("*"), *(self.home / "bin").iterdir()]
        return {str(file.relative_to(self.home)) for file in files if "__pycache__" not in file.parts}

    def plant(self, name: str, source: str, *, entry: str = "", metadata: str = "") -> None:
        """Install a distribution with one module by hand, as a wheel would."""
        (self.site / f"xaihub_{name}.py").write_text(source, encoding="utf-8")
        info = self.site / f"xaihub_{name}-0.3.dist-info"
        info.mkdir()
        points = entry or f"[xaihub]\n{name} = xaihub_{name}\n"
        (info / "entry_points.txt").write_text(points, encoding="utf-8")
        text = metadata or f"Metadata-Version: 2.1\nName: xaihub-{name}\nVersion: 0.3\n"
        (info / "METADATA").write_text(text, encoding="utf-8")
        (info / "INSTALLER").write_text("pip\n", encoding="utf-8")
        names = [
            f"xaihub_{name}.py",
            *(f"{info.name}/{file}" for file in ("entry_points.txt", "METADATA", "INSTALLER")),
        ]
        (info / "RECORD").write_text(
            "".join(f"{item},,\n" for item in [*names, f"{info.name}/RECORD"]), encoding="utf-8"
        )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    home = folder / "env"
    venv.create(home, with_pip=False)
    install = [sys.executable, "-m", "pip", "--python", str(home / "bin/python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, *map(str, folder.glob("*.whl"))], check=True, capture_output=True)
    # This interpreter's packages stand in for xaihub's dependencies; an editable xaihub among them is not seen.
    (home / SITE / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return home


@pytest.fixture
def fresh(base: Path, tmp_path: Path) -> Iterator[Fresh]:
    """The environment; whatever a test leaves in it is removed."""
    made = Fresh(base, tmp_path)
    before = made.installed()
    yield made
    for item in sorted(made.installed() - before, reverse=True):
        path = base / item
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)


def good(name: str = "good") -> str:
    """The source of a plugin with one explainer, which is a constant; in one module, for it is read only when used."""
    return (
        "from xaihub import ExplainerSpec, hookimpl\n\n"
        "@hookimpl\ndef xaihub_register_explainers():\n"
        f"    return [ExplainerSpec(name={name!r}, target=f'{{__name__}}:Method', summary='A constant.')]\n\n"
        "def __getattr__(name):\n"
        "    if name != 'Method':\n        raise AttributeError(name)\n"
        "    from xaihub import Explainer\n"
        "    class Method(Explainer):\n"
        "        def attribute(self, model, inputs, target):\n            return inputs[:, :1] * 0 + 1\n"
        "    return Method\n"
    )


def commands(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for line in "".join(blocks).splitlines()]


def test_the_tutorial_leads_from_nothing_to_a_listed_conformant_installed_plugin_and_back(fresh: Fresh) -> None:
    before = fresh.installed()
    said = {}

    for line in commands("tutorial/first-explainer.md"):
        done = fresh.run(*shlex.split(line))
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said[line] = done.stdout

    assert list(said)[0] == "xaihub plugins new celldrop"
    assert "celldrop (xaihub-celldrop 0.1.0) adds explainers: celldrop" in list(said.values())[1]
    assert "imports nothing heavy" in list(said.values())[1]
    assert "celldrop" in said["xaihub list explainers"]
    assert (fresh.work / "xaihub-out/chelsea__efficientnet_lite0__celldrop.png").is_file()
    assert "failed" not in said["xaihub plugins check celldrop"]
    assert re.search(r"\d+ passed", said["python -m pytest -q xaihub-celldrop"])
    assert fresh.installed() == before
    assert (fresh.work / "xaihub-celldrop" / "pyproject.toml").is_file()


BROKEN = {
    "syntax": ("def broken(:\n", "SyntaxError"),
    "quits": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "missing": ("import a_library_that_is_not_there\n", "No module named 'a_library_that_is_not_there'"),
    "misspelt": (good().replace("register_explainers", "register_explaners"), "there is no hook"),
    "half": (good().replace("    return [", "    raise OSError('half-way')\n    return ["), "OSError: half-way"),
}


def test_with_five_broken_plugins_everything_else_works_and_each_is_named_once_with_its_remedy(fresh: Fresh) -> None:
    fresh.plant("good", good())
    for name, (source, _) in BROKEN.items():
        fresh.plant(name, source)

    for arguments in (["--help"], ["list"], ["explain", "-e", "good", "-q"]):
        done = fresh.xaihub(*arguments)
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        assert len(lines) == len(BROKEN)
        for name, (_, reason) in BROKEN.items():
            (line,) = [line for line in lines if f"plugin '{name}' (xaihub-{name} 0.3)" in line]
            assert reason in line
            assert line.endswith(f"(remove it: xaihub plugins uninstall xaihub-{name})")


def test_every_remedy_works(fresh: Fresh) -> None:
    before = fresh.installed()
    for name, (source, _) in BROKEN.items():
        fresh.plant(name, source)

    said = fresh.xaihub("list").stderr
    remedies = re.findall(r"remove it: xaihub (plugins uninstall \S+)\)", said)
    done = fresh.xaihub("plugins", "uninstall", "-y", *(remedy.split()[-1] for remedy in remedies))

    assert done.returncode == 0, done.stderr
    assert fresh.installed() == before
    assert fresh.xaihub("list").stderr == ""


def test_two_plugins_of_one_name_a_built_in_keeps_it_and_the_other_answers_to_the_long_one(fresh: Fresh) -> None:
    fresh.plant("second", good("rise"))
    # The same entry-point name as the built-in plugin's, too.
    fresh.plant("third", good("third"), entry="[xaihub]\nrise = xaihub_third\n")

    listed = fresh.xaihub("list", "explainers", "--json")
    owners = {record["name"]: record["plugin"] for record in json.loads(listed.stdout)}

    assert owners["rise"] == "rise"
    assert owners["second/rise"] == "second"
    assert "third" not in owners
    assert "explainer 'rise' belongs to plugin 'rise'; use 'second/rise'" in listed.stderr
    assert "plugin 'rise' (xaihub-third 0.3): skipped, because plugin 'rise' (xaihub" in listed.stderr
    assert fresh.xaihub("explain", "-e", "second/rise", "-q").returncode == 0
    # The one that was skipped can be removed by its distribution's name; the built-in of that name cannot.
    assert fresh.xaihub("plugins", "uninstall", "-y", "rise").returncode == 1
    assert fresh.xaihub("plugins", "uninstall", "-y", "xaihub-third").returncode == 0


def project(folder: Path, source: str, *, backend: str = "") -> Path:
    """Write a project whose backend is hatchling, or lies in the project itself."""
    build = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    if backend:
        build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        (folder / "backend.py").parent.mkdir(parents=True, exist_ok=True)
        (folder / "backend.py").write_text(backend, encoding="utf-8")
    name = folder.name.removeprefix("xaihub-")
    package = folder / f"xaihub_{name}"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(source, encoding="utf-8")
    text = f'[project]\nname = "xaihub-{name}"\nversion = "0.3"\n\n[project.entry-points.xaihub]\n{name} = "xaihub_{name}"\n'
    (folder / "pyproject.toml").write_text(build + text, encoding="utf-8")
    return folder


def test_a_plugin_that_is_broken_is_reported_with_the_command_that_removes_it(fresh: Fresh) -> None:
    folder = project(fresh.work / "xaihub-sick", "import torch, a_library_that_is_not_there\n")

    done = fresh.xaihub("plugins", "install", folder, "-q")

    assert done.returncode == 1
    assert done.stdout == ""
    assert "plugin sick (xaihub-sick 0.3): skipped, failed while importing it: ModuleNotFoundError" in done.stderr
    assert "(remove it: xaihub plugins uninstall xaihub-sick)" in done.stderr


def test_an_install_reports_clashes_load_time_and_heavy_imports(fresh: Fresh) -> None:
    folder = project(fresh.work / "xaihub-heavy", "import numpy\n" + good("rise"))

    done = fresh.xaihub("plugins", "install", folder, "--quiet", "--json")

    assert done.returncode == 0, done.stderr
    (plugin,) = json.loads(done.stdout)
    assert plugin["registered"] == {"explainers": ["heavy/rise"]}
    assert plugin["heavy"] == ["numpy"]
    assert plugin["seconds"] > 0.01
    assert "explainer 'rise' belongs to plugin 'rise'; use 'heavy/rise'" in plugin["problems"]


def test_one_that_ends_the_interpreter_or_never_comes_back_is_reported(fresh: Fresh) -> None:
    folder = project(fresh.work / "xaihub-killer", "import os\nos._exit(7)\n")

    done = fresh.xaihub("plugins", "install", folder, "-q")

    assert done.returncode == 1
    assert "with it, listing the plugins ends with status 7" in done.stderr
    # No command of xaihub works with it, so the remedy must not need one.
    assert "pip uninstall xaihub-killer" in done.stderr


SLOW = (
    "import sys, time, pathlib\n"
    "def get_requires_for_build_wheel(config_settings=None): return []\n"
    "def build_wheel(*args, **kwargs):\n"
    "    pathlib.Path('building').touch()\n    time.sleep(100)\n"
)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_interrupting_the_build_leaves_nothing_and_the_next_install_works(fresh: Fresh) -> None:
    before = fresh.installed()
    folder = project(fresh.work / "xaihub-slow", good("slow"), backend=SLOW)
    process = fresh.start("plugins", "install", folder)
    wait_for(folder / "building")

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert said.splitlines()[-1] == "error: stopped before anything was written (nothing was installed)"
    assert fresh.installed() == before
    assert fresh.xaihub("list").stderr == ""
    shutil.rmtree(folder)
    project(folder, good("slow"))
    assert fresh.xaihub("plugins", "install", folder, "-q").returncode == 0


def large_wheel(folder: Path) -> Path:
    """A plugin with so many files that writing them takes a moment."""
    wheel = folder / "xaihub_large-0.3-py3-none-any.whl"
    info = "xaihub_large-0.3.dist-info"
    files = {f"xaihub_large/part{number}.py": f"number = {number}\n" for number in range(1500)}
    files |= {
        "xaihub_large/__init__.py": good("large"),
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: xaihub-large\nVersion: 0.3\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[xaihub]\nlarge = xaihub_large\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    return wheel


def started_writing(fresh: Fresh, wheel: Path) -> subprocess.Popen[str]:
    process = fresh.start("plugins", "install", wheel)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("Installing collected packages"):
        assert process.poll() is None
    wait_for(fresh.site / "xaihub_large")
    return process


def test_interrupting_the_writing_waits_for_its_end_and_says_how_to_undo_it(fresh: Fresh) -> None:
    before = fresh.installed()
    process = started_writing(fresh, large_wheel(fresh.work))

    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    undo = "error: stopped when everything was written (undo it: xaihub plugins uninstall xaihub-large)"
    assert said.splitlines()[-1] == undo
    assert "large" in fresh.xaihub("list", "explainers").stdout
    assert fresh.xaihub("plugins", "uninstall", "xaihub-large", "-y").returncode == 0
    assert fresh.installed() == before


def test_killing_the_installer_while_it_writes_leaves_an_environment_that_works(fresh: Fresh) -> None:
    before = fresh.installed()
    wheel = large_wheel(fresh.work)
    process = started_writing(fresh, wheel)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()

    for child in children:
        os.kill(int(child), signal.SIGKILL)
    process.communicate(timeout=60)

    assert process.returncode == 1
    assert fresh.installed() != before
    assert fresh.xaihub("list").returncode == 0
    assert fresh.xaihub("plugins", "install", wheel, "-q").returncode == 0
    assert fresh.xaihub("plugins", "uninstall", "large", "-y").returncode == 0
    assert fresh.installed() == before


def test_a_distribution_whose_list_of_files_was_never_written_is_removed_all_the_same(fresh: Fresh) -> None:
    before = fresh.installed()
    fresh.plant("torn", good("torn"))
    (fresh.site / "xaihub_torn-0.3.dist-info" / "RECORD").unlink()

    done = fresh.xaihub("plugins", "uninstall", "-y", "torn")

    assert done.returncode == 0, done.stderr
    assert fresh.installed() == before


def test_a_malformed_list_of_entry_points_costs_only_its_own_distribution(fresh: Fresh) -> None:
    fresh.plant("good", good())
    fresh.plant("sick", good(), entry="[xaihub]\nthis line has no equals sign\n")

    done = fresh.xaihub("list", "explainers", "--json")

    assert done.returncode == 0, done.stderr
    assert {"good", "rise"} <= {record["name"] for record in json.loads(done.stdout)}
    (line,) = done.stderr.splitlines()
    assert "skipped the entry points of distribution 'xaihub-sick': entry_points.txt is broken" in line


HOSTILE = "\x1b[31mred\x1b[0m \x9b2J\x1b]0;title\x07 \u202eback <script>alert(1)</script>"


def test_hostile_metadata_is_neutralised_in_everything_that_is_printed(fresh: Fresh) -> None:
    source = good("evil").replace("'A constant.'", repr(HOSTILE)) + "print('\\x1b[31m on load')\n"
    text = (
        f"Metadata-Version: 2.1\nName: xaihub-evil\nVersion: 0.3\nSummary: {HOSTILE}\nLicense: {HOSTILE}\n\n{HOSTILE}\n"
    )
    fresh.plant("evil", source, metadata=text)
    fresh.plant("named", good("<b>\x1b[31mevil</b>"))

    for arguments in (["list"], ["show", "evil"], ["plugins", "list"], ["plugins", "info", "evil"]):
        done = fresh.xaihub(*arguments)
        assert done.returncode == 0, done.stderr
        for mode in ([], ["--json"]):
            done = fresh.xaihub(*arguments, *mode)
            assert re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", done.stdout) == []
    assert "unusable name" in fresh.xaihub("list").stderr
    assert json.loads(fresh.xaihub("show", "evil", "--json").stdout)["summary"] == HOSTILE


def test_what_a_plugin_prints_while_it_is_loaded_does_not_mix_with_results(fresh: Fresh) -> None:
    fresh.plant("chatty", "print('hello from the plugin')\n" + good("chatty"))

    done = fresh.xaihub("list", "explainers", "--json")

    assert "chatty" in [record["name"] for record in json.loads(done.stdout)]
    assert "hello from the plugin" in done.stderr


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("xaihub", "error: xaihub itself is no plugin (remove it: pip uninstall xaihub)"),
        ("rise", "error: plugin 'rise' comes with xaihub and cannot be removed alone"),
        ("pluggy", "error: 'pluggy' is no plugin of xaihub, so it is not removed here (pip uninstall pluggy)"),
        ("no-such", "error: no plugin is named 'no-such' (xaihub plugins list shows them all)"),
    ],
)
def test_what_is_no_plugin_is_not_removed(fresh: Fresh, name: str, reason: str) -> None:
    before = fresh.installed()

    done = fresh.xaihub("plugins", "uninstall", "-y", name)

    assert done.returncode in (1, 2)
    assert done.stderr.strip() == reason
    assert fresh.installed() == before


def test_what_is_installed_but_no_plugin_is_said_with_the_command_that_removes_it(fresh: Fresh) -> None:
    folder = project(fresh.work / "xaihub-plain", "")
    file = folder / "pyproject.toml"
    file.write_text(
        file.read_text(encoding="utf-8").replace("entry-points.xaihub", "entry-points.other"), encoding="utf-8"
    )

    done = fresh.xaihub("plugins", "install", folder, "-q")

    assert done.returncode == 1
    assert "which is no plugin: it has no entry point in the group 'xaihub'" in done.stderr
    assert "(remove it: pip uninstall xaihub-plain)" in done.stderr
