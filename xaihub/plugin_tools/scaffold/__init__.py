"""Project templates: writes the project of a new plugin. The tutorial is generated from the same templates."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Collection
from importlib import util
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

import xaihub
from xaihub.errors import OutputError, ParameterError
from xaihub.hub import Hub
from xaihub.plugin_tools.scaffold.rendering import KINDS, NO_TEXT, class_name, packaged, render

__all__ = ["KINDS", "NO_TEXT", "new_plugin", "render"]

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")


def new_plugin(
    hub: Hub,
    name: str,
    kind: str,
    output: str | os.PathLike[str] = ".",
    *,
    licence: str = "Apache-2.0",
    commands: Collection[str] = (),
    source: str = "",
) -> Path:
    """Write the project of a new plugin into a new folder inside `output`, and return that folder.

    Args:
        hub: The hub, whose names are taken.
        name: Lower-case words, joined by hyphens or underscores.
        kind: One of `KINDS`.
        output: The parent folder; created if it does not exist.
        licence: An SPDX expression.
        commands: The existing commands of `xaihub`.
        source: A single-file plugin to turn into a package, instead of the template of `kind`.

    Raises:
        ParameterError: The name or the licence is not valid, the name is taken, or `source` imports a file next to it.
        PluginError: `source` cannot be read, or registers nothing.
        OutputError: The project's folder exists, or cannot be written.
    """
    name = re.sub(r"^xaihub[-_]", "", name)
    snake = name.replace("-", "_")
    _check_name(hub, name, kind, commands)
    try:
        licence = canonicalize_license_expression(licence)
    except InvalidLicenseExpression as error:
        raise ParameterError(
            f"licence {licence!r} is not an SPDX expression", hint="for example Apache-2.0, MIT or GPL-3.0-only"
        ) from error
    files = packaged(source, name, licence=licence) if source else render(name, kind, licence=licence)
    parent = Path(output).expanduser()
    folder = parent / f"xaihub-{snake.replace('_', '-')}"
    if os.path.lexists(folder):
        raise OutputError(f"{str(folder)!r} already exists", hint="choose another name, or another folder with -o")
    temporary = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=parent))
        whole = temporary / folder.name  # not the temporary folder itself, whose mode is private
        for path, text in files.items():
            file = whole / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        whole.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error.strerror}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_name(hub: Hub, name: str, kind: str, commands: Collection[str]) -> None:
    snake = name.replace("-", "_")
    if not _NAME.fullmatch(name) or len(name) > 50:
        better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
        hint = f"for example {better!r}" if _NAME.fullmatch(better) else "for example 'guided-lrp'"
        raise ParameterError(
            f"{name!r} is not a valid plugin name: use lower-case letters, digits and single hyphens", hint=hint
        )
    cls, hint = class_name(snake), f"for example 'my-{name}'"
    if keyword.iskeyword(cls) or keyword.iskeyword(snake) or cls in xaihub.__all__:
        raise ParameterError(f"{name!r} is not a valid plugin name: its class would be called {cls}", hint=hint)
    if any(info.name == snake for info in hub.host.plugins) or util.find_spec(f"xaihub_{snake}") is not None:
        raise ParameterError(f"a plugin called {snake!r} already exists", hint=hint)
    if kind != "command" and snake in (registry := getattr(hub, f"{kind}s")):
        raise ParameterError(f"{kind} {snake!r} belongs to plugin {registry.get(snake).plugin!r}", hint=hint)
    if kind == "command" and snake.replace("_", "-") in commands:
        raise ParameterError(f"a command called {name!r} already exists", hint=hint)
