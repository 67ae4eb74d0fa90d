"""A fresh environment with xaihub's own wheel, to install plugins into."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
        own = {"XAIHUB_STATE": str(work / "state")}
        self.environment = {
            **kept,
            **offline,
            **own,
            "PATH": f"{home / 'bin'}{os.pathsep}{kept['PATH']}",
            "COLUMNS": "200",
        }

    def run(
        self, *command: str | Path, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*map(str, command)],
            cwd=cwd or self.work,
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
            # A shell's background job ignores Ctrl-C, and its children inherit that; here it must arrive.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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
        files = [f"{info.name}/{file}" for file in ("entry_points.txt", "METADATA", "INSTALLER", "RECORD")]
        record = "".join(f"{item},,\n" for item in [f"xaihub_{name}.py", *files])
        (info / "RECORD").write_text(record, encoding="utf-8")

    @staticmethod
    def good(name: str = "good") -> str:
        """Return the source of a plugin with one explainer, a constant; its class is made when it is asked for."""
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

    @staticmethod
    def project(folder: Path, source: str, *, backend: str = "") -> Path:
        """Write a project whose backend is hatchling, or lies in the project itself."""
        build = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        if backend:
            build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            (folder / "backend.py").parent.mkdir(parents=True, exist_ok=True)
            (folder / "backend.py").write_text(backend, encoding="utf-8")
        name = folder.name.removeprefix("xaihub-").replace("-", "_")
        package = folder / f"xaihub_{name}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(source, encoding="utf-8")
        text = f'[project]\nname = "xaihub-{name}"\nversion = "0.3"\n'
        points = f'[project.entry-points.xaihub]\n{name} = "xaihub_{name}"\n'
        points += '[tool.hatch.build]\ndev-mode-dirs = ["."]\n'
        (folder / "pyproject.toml").write_text(build + text + points, encoding="utf-8")
        return folder


@pytest.fixture(scope="session")
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
