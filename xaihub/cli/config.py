"""`xaihub config`: set, unset."""

from __future__ import annotations

from collections.abc import Mapping

import click

from xaihub.cli import _defaults
from xaihub.cli._app import App, Family
from xaihub.cli._output import put, table
from xaihub.errors import ParameterError, did_you_mean


@click.group(cls=Family, invoke_without_command=True)
@click.pass_context
def config(ctx: click.Context) -> None:
    """Show or set your own defaults and templates of options.

    Without a command, prints the path of the file, what is set, and the commands to which it applies: those that have
    the option. A template applies where -T names it. An option on the command line wins over an environment variable
    such as XAIHUB_MODEL, which wins over the template, which wins over the file's other lines. A plan in --config, or
    of a run that is resumed, is not changed by defaults.

    \b
    Examples:
      xaihub config
      xaihub config set model resnet50
      xaihub config set quick.explainer gradcam rise      then: xaihub explain cat.jpg -T quick
      xaihub config unset quick
    """
    if ctx.invoked_subcommand is not None:
        return
    top, templates = _defaults.read()
    around = _defaults.environment()
    commands: Mapping[str, click.Command] = getattr(ctx.find_root().command, "commands", {})

    def row(option: str, value: object, origin: str) -> dict[str, str]:
        template, _, key = option.rpartition(".")
        names = [
            name
            for name, command in commands.items()
            if key in _defaults.applying(command)
            and (not template or any(item.name == "template" for item in command.params))
        ]
        return {"option": option, "value": _defaults.shown(value), "from": origin, "applies to": ", ".join(names)}

    rows = [
        row(key, around[key], _defaults.variable(key) + (" (instead of the file's)" if key in top else ""))
        if key in around
        else row(key, top[key], "file")
        for key in _defaults.KEYS
        if key in top or key in around
    ]
    for name, values in sorted(templates.items()):
        rows += [row(f"{name}.{key}", value, "file") for key, value in values.items()]
    put(str(_defaults.place()))
    put(
        table(rows, ("option", "value", "from", "applies to"))
        if rows
        else "nothing is set (try 'xaihub config set model resnet50')"
    )


@config.command("set", context_settings={"ignore_unknown_options": True})
@click.argument("key", metavar="[TEMPLATE.]OPTION")
@click.argument("values", nargs=-1, required=True, metavar="VALUE...")
@click.pass_obj
def set_(_app: App, /, key: str, values: tuple[str, ...]) -> None:
    """Set the default of an option, or its value in a template.

    OPTION is the name of an option of 'xaihub explain' without dashes; one that can be repeated takes several values.

    \b
    Examples:
      xaihub config set device cuda
      xaihub config set quick.explainer rise
      xaihub config set quick.param rise.masks=200 rise.cell=8
    """
    template, name = _defaults.split(key)
    value = _defaults.checked(name, values, where=key)
    top, templates = _defaults.read()
    (templates.setdefault(template, {}) if template else top)[name] = value
    put(f"{_defaults.write(top, templates)}: {key} = {_defaults.shown(value)}")


@config.command()
@click.argument("key", metavar="[TEMPLATE.]OPTION|TEMPLATE")
@click.pass_obj
def unset(_app: App, /, key: str) -> None:
    """Remove a default, an option of a template, or a whole template.

    \b
    Examples:
      xaihub config unset model
      xaihub config unset quick.explainer
      xaihub config unset quick
    """
    top, templates = _defaults.read()
    template, dot, name = key.rpartition(".")
    values, name = templates.get(template, {}) if dot else top, name.replace("-", "_")
    if name in values:
        del values[name]
    elif key in templates:
        del templates[key]
    else:
        known = [*top, *templates, *(f"{template}.{name}" for template in templates for name in templates[template])]
        hint = did_you_mean(key, known) or "'xaihub config' shows what is set"
        raise ParameterError(f"{key!r} is not set in {str(_defaults.place())!r}", hint=hint)
    templates = {name: values for name, values in templates.items() if values}
    put(f"{_defaults.write(top, templates)}: {key} removed")
