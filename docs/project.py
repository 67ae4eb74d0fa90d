"""Generates the lists in pyproject.toml that follow from the folders; `make docs` inserts them, a test compares."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Modules of the library that plugins may import, in addition to the package itself.
PUBLIC = {"errors", "files", "hookspecs", "masking", "params", "ranking", "specs", "testing"}
# The zoo may also import the code that reads weights and cards.
ZOO = {"xaihub.models"}


def plugins() -> list[str]:
    """Return the import names of the built-in plugins."""
    return sorted(path.parent.name for path in ROOT.glob("plugins/xaihub_*/__init__.py"))


def zoo() -> list[str]:
    """Return the import names of the packages in the zoo."""
    return sorted(path.parent.name for path in ROOT.glob("zoo/xaihub_*/__init__.py"))


def library() -> list[str]:
    """Return the modules and packages of the library's top level."""
    found = (path for path in (ROOT / "xaihub").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file())
    return sorted(f"xaihub.{path.stem}" for path in found if path.stem != "__init__")


def entry_points() -> str:
    """Return one entry point per built-in plugin, as third-party plugins have."""
    return "\n".join(f'{name.removeprefix("xaihub_")} = "{name}"' for name in plugins() + zoo())


def private() -> list[str]:
    """Return the modules that plugins must not import."""
    inner = [f"xaihub.{name}.*" for name in sorted(PUBLIC) if (ROOT / "xaihub" / name).is_dir()]
    return sorted([name for name in library() if name.partition(".")[2] not in PUBLIC] + inner)


def private_of_zoo() -> list[str]:
    """Return the modules that the zoo must not import."""
    return [name for name in private() if name not in ZOO]


def without_click() -> list[str]:
    """Return the modules that must not import click: all except the command line."""
    return [name for name in library() if name not in ("xaihub.__main__", "xaihub.cli")]


def listed(name: str, items: Iterable[str]) -> str:
    """Return a TOML list, one item per line."""
    return "\n".join([f"{name} = [", *(f'  "{item}",' for item in items), "]"])
