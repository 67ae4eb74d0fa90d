"""Writes tests/public_api.txt: all public names with their arguments; `make api` runs it, a test compares.

A changed or removed line breaks plugins: it needs a line in the changelog and a new minor version.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

PIN = Path(__file__).resolve().parents[1] / "tests" / "public_api.txt"


def modules() -> list[str]:
    """Return the modules with public names: those that plugins may import."""
    sys.path.append(str(Path(__file__).parent))
    return ["xaihub", *(f"xaihub.{name}" for name in sorted(import_module("project").PUBLIC))]


def public_api() -> str:
    """Return one line per public name, member of a public class, and hook."""
    lines: list[str] = []
    for module in map(import_module, modules()):
        for name in sorted(module.__all__):
            lines += _lines(f"{module.__name__}.{name}", getattr(module, name))
    hooks = import_module("xaihub.hookspecs")
    for name, hook in sorted(vars(hooks).items()):
        if name.startswith("xaihub_"):
            lines.append(f"hook {name}{_shown(inspect.signature(hook))} -> {hook.__annotations__['return']}")
    return "\n".join(lines) + "\n"


def _lines(path: str, thing: Any) -> Iterator[str]:
    """Describe a name; a class is followed by its public members, inherited ones included."""
    if inspect.isfunction(thing):
        yield f"{path}{_shown(inspect.signature(thing))}"
    elif not isinstance(thing, type) or not thing.__module__.startswith("xaihub"):
        yield path
    else:
        yield f"{path}({', '.join(_fields(thing))})" if is_dataclass(thing) else f"{path}{_constructor(thing)}"
        for name, member in sorted(_members(thing).items()):
            inner = getattr(member, "__func__", member)
            shown = _shown(inspect.signature(inner)) if inspect.isfunction(inner) else ""
            yield f"{path}.{name}{shown}"


def _fields(record: type) -> Iterator[str]:
    for item in fields(record):
        optional = item.default is not MISSING or item.default_factory is not MISSING
        yield f"{item.name}={'...' if optional else '<required>'}"


def _constructor(kind: type) -> str:
    own = next((base for base in kind.__mro__ if "__init__" in vars(base)), object)
    if not own.__module__.startswith("xaihub"):
        return ""
    return _shown(inspect.signature(own.__init__))  # type: ignore[misc]


def _members(kind: type) -> dict[str, Any]:
    """Return the public members of a class and its bases in xaihub, without dataclass fields."""
    own = [base for base in reversed(kind.__mro__) if base.__module__.startswith("xaihub")]
    known = {item.name for item in fields(kind)} if is_dataclass(kind) else set()
    return {
        name: value
        for base in own
        for name, value in {**dict.fromkeys(vars(base).get("__annotations__", {})), **vars(base)}.items()
        if not name.startswith("_") and name not in known
    }


def _shown(signature: inspect.Signature) -> str:
    """Return the arguments with their defaults; types are omitted, because widening them is compatible."""
    arguments = [item.replace(annotation=item.empty) for item in signature.parameters.values()]
    return str(signature.replace(parameters=arguments, return_annotation=signature.empty))


def main() -> int:
    """Write the pin, and return the exit code."""
    PIN.write_text(public_api(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
