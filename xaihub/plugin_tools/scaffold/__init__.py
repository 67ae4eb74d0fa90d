"""Writing the project of a new plugin, from the templates that the tutorial is made from as well."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Collection
from importlib import util
from pathlib import Path

import xaihub
from xaihub.errors import OutputError, ParameterError
from xaihub.hub import Hub

__all__ = ["KINDS", "new_plugin", "render"]

# What each kind says of itself in one line, until its author says something better.
KINDS = {
    "explainer": "The fall of the score when one cell of a grid is hidden.",
    "metric": "The fall of the probability when the cells that the map marks highest are hidden.",
    "adapter": "Networks of one's own.",
    "command": "Print the classes that a model sees in an image.",
}
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_LICENCE = re.compile(r"[A-Za-z0-9.+()-]+(?: [A-Za-z0-9.+()-]+)*")


def render(name: str, kind: str, *, licence: str = "Apache-2.0") -> dict[str, str]:
    """Return the text of each file of a new project by its path in the project's folder.

    Args:
        name: Lower-case words, joined by hyphens or underscores; see `new_plugin` for what is checked.
        kind: One of `KINDS`.
        licence: An SPDX expression.
    """
    import jinja2

    snake = name.replace("-", "_")
    facts = {
        "name": snake,
        "dashed": snake.replace("_", "-"),
        "project": f"xaihub-{snake.replace('_', '-')}",
        "package": f"xaihub_{snake}",
        "cls": _class_name(snake),
        "kind": kind,
        "summary": KINDS[kind],
        "licence": licence,
        "xaihub": ".".join(xaihub.__version__.split(".")[:2]),
    }
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - the texts are Python, TOML and Markdown, and what goes in is checked
    )
    files = {
        "pyproject.toml": "pyproject.toml.jinja",
        "README.md": "README.md.jinja",
        f"{facts['package']}/__init__.py": f"{kind}/__init__.py.jinja",
        f"{facts['package']}/method.py": f"{kind}/method.py.jinja",
        f"tests/test_{snake}.py": f"{kind}/test.py.jinja",
    }
    return {path: templates.get_template(template).render(facts) for path, template in files.items()}


def new_plugin(
    hub: Hub,
    name: str,
    kind: str,
    output: str | os.PathLike[str] = ".",
    *,
    licence: str = "Apache-2.0",
    commands: Collection[str] = (),
) -> Path:
    """Write the project of a new plugin into a folder of its own inside `output`, and return that folder.

    Args:
        hub: What is registered already.
        name: Lower-case words, joined by hyphens or underscores.
        kind: One of `KINDS`.
        output: The folder that the project's folder goes into; made if there is none.
        licence: An SPDX expression.
        commands: The commands that `xaihub` has already.

    Raises:
        ParameterError: The name or the licence cannot be used, or the name is taken.
        OutputError: The project's folder exists, or cannot be written.
    """
    name = re.sub(r"^xaihub[-_]", "", name)
    snake = name.replace("-", "_")
    _check_name(hub, name, kind, commands)
    if not _LICENCE.fullmatch(licence):
        raise ParameterError(
            f"licence {licence!r} is no SPDX expression", hint="for instance Apache-2.0, MIT or GPL-3.0-only"
        )
    files = render(name, kind, licence=licence)
    parent = Path(output).expanduser()
    folder = parent / f"xaihub-{snake.replace('_', '-')}"
    if os.path.lexists(folder):
        raise OutputError(f"{str(folder)!r} exists", hint="choose another name, or another folder with -o")
    temporary = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=parent))
        whole = temporary / folder.name  # not the temporary folder itself, which nobody else may read
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
        hint = f"for instance {better!r}" if _NAME.fullmatch(better) else "for instance 'guided-lrp'"
        raise ParameterError(
            f"{name!r} cannot be a plugin's name: lower-case letters and digits, words joined by hyphens", hint=hint
        )
    made, hint = _class_name(snake), f"for instance 'my-{name}'"
    if keyword.iskeyword(made) or keyword.iskeyword(snake) or made in xaihub.__all__:
        raise ParameterError(f"{name!r} cannot be a plugin's name: its class would be called {made}", hint=hint)
    if any(info.name == snake for info in hub.host.plugins) or util.find_spec(f"xaihub_{snake}") is not None:
        raise ParameterError(f"there is a plugin called {snake!r} already", hint=hint)
    if kind in ("explainer", "metric", "adapter") and snake in getattr(hub, f"{kind}s"):
        owner = getattr(hub, f"{kind}s").get(snake).plugin
        raise ParameterError(f"{kind} {snake!r} belongs to plugin {owner!r}", hint=hint)
    if kind == "command" and snake.replace("_", "-") in commands:
        raise ParameterError(f"there is a command called {name!r} already", hint=hint)


def _class_name(snake: str) -> str:
    return "".join(word.capitalize() for word in snake.split("_"))
