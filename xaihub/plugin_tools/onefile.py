"""Single-file plugins: registration of the classes or hooks in one Python file (`--plugin FILE`)."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

from xaihub.errors import PluginError
from xaihub.files import read_file
from xaihub.hookspecs import hookimpl
from xaihub.hub.authoring import KINDS, known_fields, record_of
from xaihub.hub.host import PluginHost, PluginInfo
from xaihub.notices import fence
from xaihub.notices.importing import import_file
from xaihub.specs import Spec

LARGEST = 2**20  # bytes of a file


def register_file(host: PluginHost, path: str | os.PathLike[str]) -> PluginInfo:
    """Register a Python file as a plugin named after the file.

    A file with hooks is imported. In any other file, each class derived from `Explainer`, `GlobalExplainer`, `Metric`,
    `Objective` or `ModelAdapter` is registered under its name in snake case, or under its class attribute `name`; such
    a file is parsed, and imported only when a class is used. The first line of the class docstring is the summary;
    class attributes named after fields of the record, such as `limits` or `higher_is_better`, fill the record.

    Raises:
        PluginError: The file is missing or broken, or registers nothing.
    """
    shown = os.fspath(path)
    try:
        file = Path(path).expanduser().resolve()
        known = next((info for info in host.plugins if info.module == str(file)), None)
        return known or _register(host, file, shown)
    except PluginError:
        raise
    except Exception as error:  # the plugin fence: parsers and records may raise anything for what the file holds
        raise PluginError(f"plugin file {shown!r} cannot be used: {type(error).__name__}: {error}") from error


def records_in(path: str) -> list[tuple[str, Spec]] | None:
    """Return the hook and the record of each class that a file would register, or None if it has hooks of its own.

    Raises:
        PluginError: The file is missing or not valid Python, or registers nothing.
    """
    tree = _parsed(path)
    if any(_has_hook(node) for node in tree.body if isinstance(node, ast.FunctionDef)):
        return None
    return _some(list(_specs(tree, Path(path).expanduser().resolve())), path)


def _some(specs: list[tuple[str, Spec]], shown: str) -> list[tuple[str, Spec]]:
    if not specs:
        raise PluginError(
            f"plugin file {shown!r} registers nothing",
            hint=f"derive a class from xaihub.{' or xaihub.'.join(KINDS)}, or define a function with @hookimpl",
        )
    return specs


def _register(host: PluginHost, file: Path, shown: str) -> PluginInfo:
    tree = _parsed(shown)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    if any(_has_hook(node) for node in functions):
        plugin: Any = _imported(file, shown)
    else:
        plugin = _Classes(_some(list(_specs(tree, file)), shown))
    count = len(host.warnings)
    info = host.register(plugin, name=re.sub(r"[^\w.+-]|^\W", "_", file.stem)[:100])
    if info.problems:
        del host.warnings[count:]  # the error reports them
        raise PluginError(
            f"plugin file {shown!r}: {info.problems[-1].removeprefix('skipped, ')}",
            hint="correct the file, or rename it",
        )
    info.module = str(file)
    return info


class _Classes:
    """A plugin whose hooks return the records of a file's classes."""

    def __init__(self, specs: list[tuple[str, Spec]]) -> None:
        for hook in {hook for hook, _ in specs}:
            self._add(hook, [spec for owner, spec in specs if owner == hook])

    def _add(self, hook: str, specs: list[Spec]) -> None:
        def implementation() -> list[Spec]:
            return specs

        setattr(self, hook, hookimpl(implementation))


def _parsed(shown: str) -> ast.Module:
    text = read_file(Path(shown).expanduser(), what="plugin file", error=PluginError, limit=LARGEST)
    try:
        with catch_warnings():
            simplefilter("ignore")  # the parser warns of odd escapes, which are the author's business
            return ast.parse(text, filename=shown)
    except Exception as error:  # in addition to syntax errors: too deep nesting, null bytes, unknown encodings
        where = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        what = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise PluginError(f"plugin file {shown!r} is not valid Python: {where}{what}") from error


def _imported(file: Path, shown: str) -> Any:
    outcome = fence.run(lambda: import_file(str(file)), libraries=True)
    if outcome.error is not None:
        what = fence.described(outcome.error)
        raise PluginError(f"plugin file {shown!r} cannot be imported: {what}") from outcome.error
    return outcome.value


def _has_hook(node: ast.FunctionDef) -> bool:
    marks = {_last_name(item.func if isinstance(item, ast.Call) else item) for item in node.decorator_list}
    return node.name.startswith("xaihub_") or "hookimpl" in marks


def _specs(tree: ast.Module, file: Path) -> Iterator[tuple[str, Spec]]:
    """Yield the hook and the record of each class to register; base classes in the same file are followed."""
    kinds = {name: name for name in KINDS}
    for line in (node for node in tree.body if isinstance(node, ast.ImportFrom)):
        kinds |= {item.asname: item.name for item in line.names if item.asname and item.name in KINDS}
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        kind = next((kinds[base] for base in map(_last_name, node.bases) if base in kinds), None)
        if kind is None:
            continue
        kinds[node.name] = kind
        if node.name.startswith("_") or any("abstractmethod" in _marks(item) for item in node.body):
            continue
        record, registry = KINDS[kind]
        facts = {name: value for name, value in _literals(node) if name in known_fields(record)}
        spec = record_of(record, node.name, ast.get_docstring(node), facts, target=f"{file}:{node.name}")
        yield f"xaihub_register_{registry}", spec


def _literals(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """Yield the class attributes whose values are literals."""
    for item in node.body:
        if isinstance(item, ast.Assign) and len(item.targets) == 1:
            target, value = item.targets[0], item.value
        elif isinstance(item, ast.AnnAssign) and item.value is not None:
            target, value = item.target, item.value
        else:
            continue
        if isinstance(target, ast.Name):
            try:
                yield target.id, ast.literal_eval(value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue


def _marks(node: ast.stmt) -> set[str]:
    return {_last_name(item) for item in getattr(node, "decorator_list", [])}


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
