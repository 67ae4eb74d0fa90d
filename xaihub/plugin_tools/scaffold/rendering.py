"""Text of the files of a new project, from templates or from a single-file plugin."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import xaihub
from xaihub.errors import ParameterError, PluginError
from xaihub.files import read_file
from xaihub.plugin_tools.onefile import LARGEST, records_in
from xaihub.specs import GlobalExplainerSpec, Spec

# The summary of each kind of project, which its author replaces.
KINDS = {
    "explainer": "Drop in score when one cell of a grid is masked.",
    "metric": "Drop in probability when the highest cells of a map are masked.",
    "objective": "Cross-entropy minus a multiple of the entropy of the predictions.",
    "baseline": "The mean colour of the border of the image.",
    "adapter": "Custom network architectures.",
    "head": "The logarithm of the summed exponentials of the class scores.",
    "model": "A small residual network for three classes, with random weights.",
    "command": "Print the classes that a model predicts for an image.",
}
_TEMPLATES = Path(__file__).parent / "templates"
_COMMON = {
    ".gitignore": "gitignore.jinja",
    ".github/workflows/check.yml": "check.yml.jinja",
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
}


# What LICENSE says until the author puts the text of a licence there that xaihub does not ship.
NO_TEXT = "Replace this line by the text of"


def render(name: str, kind: str, *, licence: str = "Apache-2.0") -> dict[str, str]:
    """Return the text of each file of a new project, by its path in the project's folder.

    Args:
        name: Lower-case words, joined by hyphens or underscores; not validated here.
        kind: One of `KINDS`.
        licence: An SPDX expression.
    """
    facts = _facts(name, kind, KINDS[kind], licence)
    files = {
        **_COMMON,
        f"{facts['package']}/__init__.py": f"{kind}/__init__.py.jinja",
        f"{facts['package']}/method.py": f"{kind}/method.py.jinja",
        f"tests/test_{facts['name']}.py": f"{kind}/test.py.jinja",
    }
    known = {path: template for path, template in files.items() if (_TEMPLATES / template).is_file()}
    return {**_filled(known, facts), "LICENSE": _licence_text(facts)}


def _facts(name: str, kind: str, summary: str, licence: str) -> dict[str, Any]:
    """Return what the templates fill in."""
    snake = name.replace("-", "_")
    return {
        "name": snake,
        "dashed": snake.replace("_", "-"),
        "project": f"xaihub-{snake.replace('_', '-')}",
        "package": f"xaihub_{snake}",
        "cls": class_name(snake),
        "kind": kind,
        "summary": summary,
        "quoted": json.dumps(summary, ensure_ascii=False),
        "licence": licence,
        "xaihub": ".".join(xaihub.__version__.split(".")[:2]),
    }


def _filled(files: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each file, from the template that is named for it."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Python, TOML and Markdown with validated values
    )
    return {path: templates.get_template(template).render(facts) for path, template in files.items()}


def _licence_text(facts: Mapping[str, str]) -> str:
    """Return the text of the licence, or a line that asks for it."""
    licence = facts["licence"]
    if (_TEMPLATES / f"{licence}.jinja").is_file():
        return _filled({"LICENSE": f"{licence}.jinja"}, facts)["LICENSE"]
    own = metadata.distribution("xaihub")
    if licence == own.metadata["License-Expression"] and (text := own.read_text("licenses/LICENSE")):
        return text
    return f"{NO_TEXT} {licence}, for example from https://spdx.org/licenses\n"


def class_name(snake: str) -> str:
    """Return the name of the class of a plugin."""
    return "".join(word.capitalize() for word in snake.split("_"))


def packaged(source: str, name: str, *, licence: str) -> dict[str, str]:
    """Return the text of each file of a project that contains the single-file plugin `source`.

    A file with hooks becomes the package's `__init__.py`; any other becomes its `method.py`, next to records of its
    classes.

    Raises:
        ParameterError: It imports a file next to it, which the package would lack.
        PluginError: It cannot be read, or registers nothing.
    """
    text = read_file(Path(source).expanduser(), what="plugin file", error=PluginError, limit=LARGEST).decode()
    found = records_in(source)
    _require_no_neighbour(Path(source).expanduser(), ast.parse(text))
    records = [(hook, _record(spec, f"xaihub_{name.replace('-', '_')}.method")) for hook, spec in found or []]
    summary = next((record["summary"] for _, record in records if record["summary"]), f"The plugin {name}.")
    facts: dict[str, Any] = _facts(name, "onefile", summary, licence)
    facts |= {"records": [record for _, record in records], "doc": ast.get_docstring(ast.parse(text)) or summary}
    facts["types"] = sorted({record["type"] for _, record in records})
    facts["hooks"] = {hook: [record for of, record in records if of == hook] for hook, _ in records}
    package, test = facts["package"], f"tests/test_{facts['name']}.py"
    files = {**_COMMON, test: "onefile/test.py.jinja"}
    code = {f"{package}/__init__.py": text}
    if found is not None:
        files[f"{package}/__init__.py"] = "onefile/__init__.py.jinja"
        code = {f"{package}/method.py": text}
    return {**_filled(files, facts), **code, "LICENSE": _licence_text(facts)}


def _record(spec: Spec, module: str) -> dict[str, Any]:
    """Return a record's type, and its fields as source text."""
    values = {item.name: getattr(spec, item.name) for item in fields(spec) if item.name != "plugin"}
    values["target"] = f"{module}:{spec.target.rpartition(':')[2]}"
    default = {item.name: item.default for item in fields(spec) if item.default is not MISSING}
    given = {key: value for key, value in values.items() if key not in default or value != default[key]}
    shown = {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
        for key, value in given.items()
    }
    return {
        "type": type(spec).__name__,
        "name": spec.name,
        "summary": spec.summary,
        "fields": shown,
        "checked": not isinstance(spec, GlobalExplainerSpec),
    }


def _require_no_neighbour(file: Path, tree: ast.Module) -> None:
    for node in ast.walk(tree):
        names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            near = file.parent / name.partition(".")[0]
            if name == "." or near.with_suffix(".py").is_file() or (near / "__init__.py").is_file():
                raise ParameterError(
                    f"plugin file {str(file)!r} imports {name!r} from its folder, which the package would lack",
                    hint="put both into one file, or start from a template and copy them",
                )
