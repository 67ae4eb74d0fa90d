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

import xaihub
from xaihub.errors import OutputError, ParameterError
from xaihub.hub import Hub

# The summary of each kind of project, which its author replaces.
KINDS = {
    "explainer": "Drop in score when one cell of a grid is masked.",
    "metric": "Drop in probability when the highest cells of a map are masked.",
    "adapter": "Custom network architectures.",
    "command": "Print the classes that a model predicts for an image.",
}
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_LICENCE = re.compile(r"[A-Za-z0-9.+()-]+(?: [A-Za-z0-9.+()-]+)*")


def render(name: str, kind: str, *, licence: str = "Apache-2.0") -> dict[str, str]:
    """Return the text of each file of a new project, by its path in the project's folder.

    Args:
        name: Lower-case words, joined by hyphens or underscores; not validated here.
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
        autoescape=False,  # noqa: S701 - Python, TOML and Markdown with validated values
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
    """Write the project of a new plugin into a new folder inside `output`, and return that folder.

    Args:
        hub: The hub, whose names are taken.
        name: Lower-case words, joined by hyphens or underscores.
        kind: One of `KINDS`.
        output: The parent folder; created if it does not exist.
        licence: An SPDX expression.
        commands: The existing commands of `xaihub`.

    Raises:
        ParameterError: The name or the licence is not valid, or the name is taken.
        OutputError: The project's folder exists, or cannot be written.
    """
    name = re.sub(r"^xaihub[-_]", "", name)
    snake = name.replace("-", "_")
    _check_name(hub, name, kind, commands)
    if not _LICENCE.fullmatch(licence):
        raise ParameterError(
            f"licence {licence!r} is not an SPDX expression", hint="for example Apache-2.0, MIT or GPL-3.0-only"
        )
    files = render(name, kind, licence=licence)
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
    cls, hint = _class_name(snake), f"for example 'my-{name}'"
    if keyword.iskeyword(cls) or keyword.iskeyword(snake) or cls in xaihub.__all__:
        raise ParameterError(f"{name!r} is not a valid plugin name: its class would be called {cls}", hint=hint)
    if any(info.name == snake for info in hub.host.plugins) or util.find_spec(f"xaihub_{snake}") is not None:
        raise ParameterError(f"a plugin called {snake!r} already exists", hint=hint)
    if kind in ("explainer", "metric", "adapter") and snake in getattr(hub, f"{kind}s"):
        owner = getattr(hub, f"{kind}s").get(snake).plugin
        raise ParameterError(f"{kind} {snake!r} belongs to plugin {owner!r}", hint=hint)
    if kind == "command" and snake.replace("_", "-") in commands:
        raise ParameterError(f"a command called {name!r} already exists", hint=hint)


def _class_name(snake: str) -> str:
    return "".join(word.capitalize() for word in snake.split("_"))
