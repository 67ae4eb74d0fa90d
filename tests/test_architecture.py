"""What the import contracts (checked by `make lint`) must list, cycles, the size of modules, and the public names."""

from __future__ import annotations

import ast
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

import xaihub
import xaihub.testing

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(file for root in ("xaihub", "plugins", "zoo") for file in (ROOT / root).rglob("*.py"))
PACKAGES = [
    ROOT / "xaihub",
    *sorted(file.parent for root in ("plugins", "zoo") for file in ROOT.glob(f"{root}/*/__init__.py")),
]
# What a plugin may import, in addition to the names of `xaihub` itself.
PUBLIC = {"masking", "hookspecs", "specs", "params", "errors", "files", "ranking", "testing"}
COMMAND_LINE = {"cli", "__main__"}


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]


def contract(name: str) -> dict[str, Any]:
    return next(item for item in settings()["contracts"] if item["id"] == name)


def modules() -> set[str]:
    """The modules and packages directly inside xaihub."""
    folder = ROOT / "xaihub"
    names = {file.stem for file in folder.glob("*.py")} | {file.parent.name for file in folder.glob("*/*.py")}
    return names - {"__init__"}


def below(names: list[str]) -> set[str]:
    return {name.split(".")[1] for name in names}


def test_every_module_is_either_public_or_closed_to_plugins() -> None:
    closed = contract("public-api")["forbidden_modules"]

    assert below(closed) | PUBLIC == modules()
    assert {name for name in closed if name.split(".")[1] in PUBLIC} == {
        "xaihub.masking.*",
        "xaihub.ranking.*",
        "xaihub.testing.*",
    }


def test_the_zoo_may_import_models_in_addition() -> None:
    closed = contract("public-api-zoo")["forbidden_modules"]

    assert below(closed) | PUBLIC | {"models"} == modules()
    assert "xaihub.models" not in closed


def imports(package: Path) -> dict[str, set[str]]:
    """The modules of a package, each with the modules of that package that it imports anywhere in its source."""
    files = {".".join(file.relative_to(package.parent).with_suffix("").parts): file for file in package.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        wanted: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {item.name for item in node.names}
            elif isinstance(node, ast.ImportFrom):
                below = {f"{node.module}.{item.name}" for item in node.names}
                wanted |= below & files.keys() or {str(node.module)}
        graph[name] = (wanted & files.keys()) - {name}
    return graph


def cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_search_for_cycles_finds_one() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) != []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_modules_do_not_import_each_other_in_a_cycle(package: Path) -> None:
    # Unlike the contract "no-cycles", this includes imports inside functions and for type checkers.
    assert cycle(imports(package)) == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_the_top_level_of_a_package_has_no_cycle(package: Path) -> None:
    rooms: dict[str, set[str]] = {}
    for name, wanted in imports(package).items():
        own, *others = (".".join(item.split(".")[:2]) for item in (name, *wanted))
        rooms[own] = rooms.get(own, set()) | set(others) - {own}

    assert cycle(rooms) == []


def test_type_checkers_see_the_names_that_are_resolved_on_access() -> None:
    tree = ast.parse((ROOT / "xaihub" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    lines = [node for node in block.body if isinstance(node, ast.ImportFrom)]

    assert {(node.module, item.name, item.asname) for node in lines for item in node.names} == {
        (f"xaihub.{module}", name, name) for name, module in xaihub._HOME.items()
    }


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_has_at_most_25_modules_and_packages_at_its_top_level(package: Path) -> None:
    found = {file for file in package.iterdir() if file.suffix == ".py" or (file / "__init__.py").is_file()}

    assert len(found) <= 25


def test_every_module_outside_the_command_line_is_kept_free_of_click() -> None:
    assert below(contract("click")["source_modules"]) | COMMAND_LINE == modules()


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_has_at_most_400_lines(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("name", xaihub.testing.__all__)
def test_a_public_name_of_the_kit_can_be_imported_and_is_documented(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")

    assert getattr(xaihub.testing, name) is not None
    assert f"## `{name}`" in page


@pytest.mark.parametrize("name", xaihub.__all__)
def test_a_public_name_can_be_imported_and_is_documented(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")

    assert getattr(xaihub, name) is not None
    assert f"`{name}" in page


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        _ = xaihub.explian
