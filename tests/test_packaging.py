"""What is built and installed: wheel, wheel from the source archive, editable."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command outside the checkout's influence and return its stdout."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def contents(wheel: Path) -> dict[str, str]:
    """Return the checksum of every file in a wheel; the list of files itself is left out."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/RECORD")]
        return {name: sha256(archive.read(name)).hexdigest() for name in names}


def packages(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir() if item.is_dir() and item.name.startswith("xaihub_")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built straight from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def archive_and_wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def environment(folder: Path, wheel: Path) -> Path:
    """Make an environment with `wheel` and, for its dependencies, this interpreter's packages; return its folder.

    The packages are appended to the path one by one, so an editable xaihub among them is not seen.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


def test_the_wheel_holds_the_library_every_plugin_and_the_zoo(wheel: Path) -> None:
    top = {name.partition("/")[0] for name in contents(wheel)}

    assert top == {"xaihub", "xaihub_zoo", f"xaihub-{version()}.dist-info", *packages(ROOT / "plugins")}


def test_the_wheel_holds_types_cards_and_the_licence(wheel: Path) -> None:
    names = contents(wheel)

    assert "xaihub/py.typed" in names
    assert f"xaihub-{version()}.dist-info/licenses/LICENSE" in names
    assert {f"xaihub_zoo/cards/{card.name}" for card in (ROOT / "zoo/xaihub_zoo/cards").iterdir()} <= set(names)


def test_the_wheel_from_the_source_archive_equals_the_direct_wheel(
    wheel: Path, archive_and_wheel: tuple[Path, Path]
) -> None:
    assert contents(archive_and_wheel[1]) == contents(wheel)


def test_the_installed_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    home = environment(tmp_path / "env", wheel)
    program = home / "bin" / "xaihub"

    shown = run(program, "--version", cwd=tmp_path)
    listed = json.loads(run(program, "list", "explainers", "--json", cwd=tmp_path))
    where = run(home / "bin" / "python", "-c", "import xaihub_rise; print(xaihub_rise.__file__)", cwd=tmp_path)

    assert version() in shown
    assert {"gradcam", "integrated_gradients", "rise"} <= {record["name"] for record in listed}
    assert Path(where.strip()).is_relative_to(home)


def test_an_editable_install_uses_the_checkout(tmp_path: Path) -> None:
    script = "import sys; from hatchling.build import build_editable; print(build_editable(sys.argv[1]))"
    name = run(sys.executable, "-c", script, tmp_path, cwd=ROOT).split()[-1]
    home = environment(tmp_path / "env", tmp_path / name)

    script = "import xaihub, xaihub_rise, xaihub_zoo; print(*(m.__file__ for m in (xaihub, xaihub_rise, xaihub_zoo)))"
    files = run(home / "bin" / "python", "-c", script, cwd=tmp_path).split()

    assert [str(Path(file).relative_to(ROOT)) for file in files] == [
        "xaihub/__init__.py",
        "plugins/xaihub_rise/__init__.py",
        "zoo/xaihub_zoo/__init__.py",
    ]


def test_folders_packages_entry_points_and_contracts_agree() -> None:
    settings = project()
    modules = {*packages(ROOT / "plugins"), *packages(ROOT / "zoo")}

    assert set(settings["project"]["entry-points"]["xaihub"].values()) == modules
    assert set(settings["tool"]["importlinter"]["root_packages"]) == modules | {"xaihub"}


def test_an_entry_point_is_named_after_its_package() -> None:
    points = project()["project"]["entry-points"]["xaihub"]

    assert {f"xaihub_{name}": name for name in points} == {module: name for name, module in points.items()}


def test_every_library_that_is_imported_is_a_declared_dependency() -> None:
    declared = project()["project"]
    lines = declared["dependencies"] + [line for extra in declared["optional-dependencies"].values() for line in extra]
    known = {canonical(re.split(r"[<>=!~;\[ ]", line)[0]) for line in lines}
    owners = metadata.packages_distributions()
    files = [file for root in ("xaihub", "plugins", "zoo") for file in (ROOT / root).rglob("*.py")]
    used = {name for file in files for name in imports(file)} - sys.stdlib_module_names
    foreign = {name for name in used if not name.startswith("xaihub")}

    # A library that is not installed here is taken for one that is distributed under its own name. The conformance kit
    # runs inside the pytest of whoever calls it.
    assert {name for name in foreign if not known & set(map(canonical, owners.get(name, [name])))} == {"pytest"}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("root", ["plugins", "zoo"])
def test_only_packages_of_ours_lie_in_a_source_root(root: str) -> None:
    # An editable install puts the folder on the path, so anything else in it could be imported by anybody.
    strangers = [
        item.name for item in (ROOT / root).iterdir() if not item.name.startswith(("xaihub_", "__pycache__", "."))
    ]

    assert strangers == []


def version() -> str:
    import xaihub

    return xaihub.__version__
