"""A user's own defaults of options: environment variables, and a TOML file that `xaihub config` writes."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xaihub.errors import InputError, OutputError, ParameterError, did_you_mean
from xaihub.files import read_file, user_folder, write_file

if TYPE_CHECKING:
    from pathlib import Path

    import click

# The options that may have another default. What is not here belongs to one image or to one result.
KEYS = (
    "model", "explainer", "metric", "param", "budget", "seed", "device", "batch_size", "threads", "backend",
    "precision", "colormap", "alpha", "smooth",
)  # fmt: skip
# The options of commands that have the same name but another meaning.
OTHERWISE = {
    "plugins": {"param"},
    "rank": {"explainer", "param"},  # global explainers
    "sweep": {"explainer", "metric", "param", "batch_size", "precision"},  # the objective's; of the training
    "train": {"param", "batch_size", "precision"},
    "tune": {"param"},  # values to search
}
TEMPLATES = "template"  # the table of the file that has templates by name
LIMIT = 2**20
_TEMPLATE = re.compile(r"[A-Za-z0-9_-]+")
Values = dict[str, Any]


class Lazy(dict[str, Any]):
    """Click's `default_map` of the root command: the file is read when a command that has defaults is used."""

    def __init__(self, commands: Mapping[str, click.Command]) -> None:
        """Take the commands that may have defaults, by name."""
        super().__init__()
        self._commands = commands

    def get(self, command: str, default: Any = None) -> Any:
        """Return the defaults of a command by parameter."""
        return of_command(self._commands[command]) if command in self._commands else default


def of_command(command: click.Command, template: str = "") -> Values:
    """Return the defaults of a command's options by click's parameter.

    Raises:
        XaihubError: As `effective`.
    """
    options = applying(command)
    values = effective(template) if options else {}
    return {str(item.name): _fitting(item, values[key]) for key, item in options.items() if key in values}


def applying(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command that may have another default, by key."""
    options, others = _named(command), OTHERWISE.get(str(command.name), ())
    return {key: options[key] for key in KEYS if key in options and key not in others}


def _fitting(option: click.Option, value: Any) -> Any:
    """Return a value as an option of one command takes it, or a function that refuses it once it is used."""
    import click

    if option.multiple:
        return value if isinstance(value, tuple) else (value,)
    if not isinstance(value, tuple):
        return value
    if len(value) == 1:
        return value[0]

    def refuse() -> Any:
        flag = max(option.opts, key=len)
        raise click.UsageError(f"{flag} takes one value, but its default is {', '.join(map(str, value))}; name one")

    return refuse


def effective(template: str = "") -> Values:
    """Return values by key: the environment's, else the template's, else those of the file.

    Raises:
        InputError: The file cannot be read.
        ParameterError: A key or value is not valid, or there is no such template.
    """
    top, templates = read()
    if template and template not in templates:
        hint = did_you_mean(template, templates) or f"save one with 'xaihub config set {template}.explainer rise'"
        raise ParameterError(f"there is no template {template!r}", hint=hint)
    return {**top, **templates.get(template, {}), **environment()}


def variable(key: str) -> str:
    """Return the name of the environment variable."""
    return f"XAIHUB_{key.upper()}"


def environment() -> Values:
    """Return the values of environment variables by key; an option that can be repeated takes several, with spaces."""
    options = _options()
    texts = {key: os.environ[variable(key)] for key in KEYS if os.environ.get(variable(key))}
    return {
        key: checked(key, text.split() if options[key].multiple else text, where=variable(key))
        for key, text in texts.items()
    }


def place() -> Path:
    """Return the path of the file, which may not exist.

    Raises:
        OutputError: The user has no home.
    """
    try:
        return user_folder("config") / "config.toml"
    except RuntimeError as error:
        raise OutputError("there is no home folder for the defaults", hint="name a folder in XAIHUB_CONFIG") from error


def read() -> tuple[Values, dict[str, Values]]:
    """Return the values of the file by key, and those of each template; nothing if there is no file."""
    try:
        file = place()
    except OutputError:
        return {}, {}
    if not file.exists():
        return {}, {}
    import tomllib

    data = read_file(file, what="file of defaults", error=InputError, limit=LIMIT)
    try:
        found = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        problem = f"cannot read the file of defaults {str(file)!r}: {str(error) or 'too many brackets'}"
        raise InputError(problem, hint="correct or delete it") from error
    tables = found.pop(TEMPLATES, {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise InputError(f"{TEMPLATES!r} in {str(file)!r} is not a set of tables", hint=f"write [{TEMPLATES}.NAME]")

    def valid(values: Values, start: str = "") -> Values:
        return {key: checked(key, value, where=f"{start}{key} in {str(file)!r}") for key, value in values.items()}

    return valid(found), {name: valid(table, f"{TEMPLATES}.{name}.") for name, table in tables.items()}


def write(top: Values, templates: Mapping[str, Values]) -> Path:
    """Replace the file; its comments are not kept."""
    lines = _lines(top)
    for name, values in sorted(templates.items()):
        lines += ["", f"[{TEMPLATES}.{name if _TEMPLATE.fullmatch(name) else _quoted(name)}]", *_lines(values)]
    return write_file(place(), "\n".join(lines).lstrip("\n") + "\n")


def split(key: str) -> tuple[str, str]:
    """Return the template, or "", and the option that MODEL or TEMPLATE.MODEL names.

    Raises:
        ParameterError: The name of the template is not valid, or the option cannot have another default.
    """
    template, dot, name = key.rpartition(".")
    if dot and not _TEMPLATE.fullmatch(template):
        raise ParameterError(f"{template!r} is not a name for a template", hint="use letters, digits, - and _")
    name = name.replace("-", "_")
    _check_key(name, where=key)
    return template, name


def checked(key: str, value: Any, *, where: str) -> Any:
    """Return a value as the option's own type, or a tuple of values for an option that can be repeated.

    Raises:
        ParameterError: The option cannot have another default, or the value is not one of it.
    """
    import click

    _check_key(key, where=where)
    option, several = _options()[key], isinstance(value, (list, tuple))
    texts = [_text(one, where) for one in (value if several else [value])]
    if not option.multiple and len(texts) != 1:
        raise ParameterError(f"{where}: --{key.replace('_', '-')} takes one value, not {len(texts)}")
    given: Any = tuple(texts) if option.multiple else texts[0]
    context = click.Context(click.Command("explain"))
    try:
        option.process_value(context, given)  # with the callback, whose result is not what a default is
        found = option.type_cast_value(context, given)
    except click.BadParameter as error:
        raise ParameterError(f"{where}: {error.message.rstrip('.')}") from error
    if isinstance(found, float) and not math.isfinite(found):
        raise ParameterError(f"{where}: {found} is not a finite number")
    return found


def shown(value: Any) -> str:
    """Return a value as a line of the file has it."""
    if isinstance(value, (list, tuple)):
        return shown(value[0]) if len(value) == 1 else f"[{', '.join(map(shown, value))}]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _check_key(key: str, *, where: str) -> None:
    if key not in KEYS:
        hint = did_you_mean(key, KEYS) or f"these can be set: {', '.join(KEYS)}"
        raise ParameterError(f"{where}: not an option that can have another default", hint=hint)


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise ParameterError(f"{where}: {value!r} is not a text, number or truth value")
    text = str(value)
    if not text or not text.isprintable():
        raise ParameterError(f"{where}: the value {text!r} is empty or has control characters")
    return text


def _lines(values: Values) -> list[str]:
    return [f"{key} = {shown(values[key])}" for key in KEYS if key in values]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # TOML has the escapes of JSON, but not its pairs of surrogates


def _options() -> Mapping[str, click.Option]:
    """Return click's options by key, as `explain` and `evaluate` have them."""
    import click

    from xaihub.cli._options import METRIC, ExplainOptions, option, options

    added: Any = option("metrics", tuple[str, ...], (), METRIC)(options(ExplainOptions)(lambda given: given))
    named = _named(click.command("defaults")(added))
    return {key: named[key] for key in KEYS}


def _named(command: click.Command) -> dict[str, click.Option]:
    import click

    found = [item for item in command.params if isinstance(item, click.Option)]
    return {max(item.opts, key=len).lstrip("-").replace("-", "_"): item for item in found}
