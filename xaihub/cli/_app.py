"""The click group: plugin commands, error messages and plugin warnings."""

from __future__ import annotations

import os
import re
import sys
from collections import UserDict
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from xaihub.cli._output import clean, say
from xaihub.cli._remembered import Remembered
from xaihub.errors import XaihubError, did_you_mean
from xaihub.notices.interrupts import heard

if TYPE_CHECKING:
    from xaihub.hub import Hub
    from xaihub.hub.host import PluginHost, PluginInfo

_COMMAND = re.compile(r"\w[\w-]*")


class App:
    """State shared by all commands; the hub is created on first use."""

    def __init__(self, hub: Hub | None = None) -> None:
        """Use `hub`, or create one on first use."""
        self._hub = hub

    @cached_property
    def hub(self) -> Hub:
        """The hub; what went wrong while it was made is told before the command may end in the same way."""
        from xaihub.hub import Hub

        hub = self._hub or Hub()
        _warn(hub.host)
        return hub

    @property
    def has_hub(self) -> bool:
        """Whether the hub exists already."""
        return self._hub is not None or "hub" in self.__dict__

    @property
    def host(self) -> PluginHost:
        """The hub's plugin host, or one that has loaded nothing if no hub was created yet."""
        from xaihub.hub.host import PluginHost

        return self.hub.host if self.has_hub else PluginHost()

    @cached_property
    def plugin_commands(self) -> dict[str, tuple[PluginInfo, click.Command]]:
        """Commands of plugins by name; the first plugin that registers a name keeps it."""
        found: dict[str, tuple[PluginInfo, click.Command]] = {}
        host = self.hub.host
        for info, command in host.collect("xaihub_register_commands"):
            if not isinstance(command, click.Command) or not command.name:
                host.problem(info, f"xaihub_register_commands returned a {type(command).__name__}, not a click command")
            elif not _COMMAND.fullmatch(command.name):
                host.problem(info, f"xaihub_register_commands returned the unusable name {command.name!r}")
            elif command.name in found:
                host.problem(info, f"command {command.name!r} belongs to plugin {found[command.name][0].name!r}")
            else:
                for text in ("help", "short_help", "epilog"):
                    # In click, a backspace alone on its line starts a paragraph that is not rewrapped.
                    parts = (getattr(command, text) or "").split("\b\n")
                    setattr(command, text, "\b\n".join(map(clean, parts)) or None)
                found[command.name] = (info, command)
        return found

    def report_warnings(self) -> None:
        """Print each plugin problem once, on stderr."""
        if "hub" in self.__dict__:
            _warn(self.hub.host)


def _warn(host: PluginHost) -> None:
    for warning in dict.fromkeys(host.warnings):
        say(f"warning: {warning}")
    host.warnings.clear()


class Commands(UserDict[str, Any]):
    """Built-in commands by name, each imported when it is looked up."""

    def __init__(self, table: Mapping[str, tuple[str, str]]) -> None:
        """Take "module:attribute" in `xaihub.cli`, and the line in the list of commands, by name."""
        super().__init__({name: target for name, (target, _) in table.items()})
        self.lines = {name: line for name, (_, line) in table.items()}

    def __getitem__(self, name: str) -> click.Command:
        """Return a command."""
        module, _, attribute = self.data[name].partition(":")
        command: click.Command = getattr(import_module(f"xaihub.cli.{module}"), attribute)
        return command


class Family(click.Group):
    """A group of commands that suggests similar names for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest similar commands for an unknown one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            hint = did_you_mean(args[0], self.list_commands(ctx))
            ctx.ensure_object(App).report_warnings()
            raise click.UsageError(f"there is no command {args[0]!r}" + (f", {hint}" if hint else ""), ctx) from error


class Group(Family):
    """The root group: adds plugin commands, and turns every error into one line and an exit code."""

    commands: Any  # `Commands`

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return built-in commands, then plugin commands."""
        own = super().list_commands(ctx)
        app = ctx.ensure_object(App)
        for name, (info, _) in app.plugin_commands.items():
            if name in own:
                app.hub.host.problem(info, f"the command {name!r} is built in and cannot be replaced")
        return own + sorted(set(app.plugin_commands) - set(own))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a built-in or plugin command; plugins are loaded only if no built-in command has the name."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        found = ctx.ensure_object(App).plugin_commands.get(cmd_name)
        return found[1] if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one line per command; built-in ones are not imported for it."""
        lines = {**self.commands.lines, **self._of_plugins(ctx)}
        width = formatter.width - 6 - max(map(len, lines))
        commands = [click.Command(name, help=line) for name, line in lines.items()]
        with formatter.section("Commands"):
            formatter.write_dl([(str(one.name), one.get_short_help_str(width)) for one in commands])

    def _of_plugins(self, ctx: click.Context) -> dict[str, str]:
        """Return a line for each command of plugins, which are loaded only if something has changed since last time.

        Nothing is remembered if a plugin has a problem, so that it is reported every time.
        """
        app, memory = ctx.ensure_object(App), Remembered("commands")
        by_hand = app.has_hub
        found = None if by_hand else memory.recall()
        if found is None:
            with memory.watching():
                added = [name for name in self.list_commands(ctx) if name not in self.commands]
                commands = {name: app.plugin_commands[name][1] for name in added}
                found = {name: one.get_short_help_str(200) for name, one in commands.items() if not one.hidden}
            if not by_hand and not app.hub.host.warnings:
                memory.keep(found)
        return found

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help, then report broken plugins."""
        super().format_help(ctx, formatter)
        ctx.ensure_object(App).report_warnings()

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, then report broken plugins."""
        try:
            return super().invoke(ctx)
        finally:
            ctx.ensure_object(App).report_warnings()

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command line; a failure is one line and exit code 1, wrong usage exit code 2."""
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            with heard() as presses:
                result = run(*args, standalone_mode=False, **extra)
            if presses and not result:  # whatever has swallowed it
                raise KeyboardInterrupt
        except Exception as error:
            sys.exit(_report(error))
        except KeyboardInterrupt as error:
            say(str(error) or "stopped")
            sys.exit(130)
        sys.exit(result if isinstance(result, int) else 0)


def _report(error: Exception) -> int:
    """Print an error as one line and return the exit code."""
    if isinstance(error, XaihubError):
        say(f"error: {error}")
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return 2
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        see = f" (see '{context.command_path} --help')" if context is not None else ""
        say(f"error: {error.format_message().rstrip('.')}{see}")
        return error.exit_code
    if isinstance(error, click.Abort):
        say(str(error.__cause__ or "") or "stopped")  # the cause names the plugin that was being loaded
        return 130
    if isinstance(error, BrokenPipeError):
        # The reader of the pipe has exited; silence Python's own message at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if os.environ.get("XAIHUB_DEBUG"):
        raise error
    from xaihub.notices.fence import described

    say(f"error: {_blame(error)}{described(error)} (set XAIHUB_DEBUG=1 for the traceback)")
    return 1


def _blame(error: BaseException) -> str:
    """Name the plugin whose code raised: the innermost frame in a module called xaihub_*."""
    import traceback
    from pathlib import Path

    files = [Path(frame.f_code.co_filename) for frame, _line in traceback.walk_tb(error.__traceback__)]
    names = [part for file in files for part in file.parts if part.startswith("xaihub_")]
    return f"in plugin module {names[-1]!r}: " if names else "unexpected "
