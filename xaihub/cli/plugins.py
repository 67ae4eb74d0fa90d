"""`xaihub plugins`: new, install, uninstall, list, search, check, info."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xaihub.api.parameters import Setting
from xaihub.cli._app import App, Family
from xaihub.cli._options import PARAM, json_option, option
from xaihub.cli._output import put, put_json, put_json_list, say, some, table

if TYPE_CHECKING:
    from xaihub.plugin_tools.installing import Installed
    from xaihub.testing.catalogue import CheckResult


# The kinds of `xaihub.plugin_tools.scaffold`, which is imported only when used.
KINDS = ("explainer", "metric", "objective", "baseline", "adapter", "head", "model", "command")
TIMEOUT = 120.0  # seconds per check; the slowest one of a built-in takes three on an idle core


@click.group(cls=Family)
def plugins() -> None:
    """Create, install, check and remove plugins.

    \b
    Examples:
      xaihub plugins new celldrop              create a project for a new explainer
      xaihub plugins install ./xaihub-celldrop
      xaihub plugins check celldrop            run the conformance checks
      xaihub plugins list
      xaihub plugins uninstall celldrop
    """


@plugins.command()
@click.argument("name", required=False)
@click.option("--kind", type=click.Choice(KINDS), default="explainer", show_default=True, help="What the plugin adds.")
@click.option(
    "--from", "source", metavar="FILE", help="Turn this single-file plugin into a package; NAME is then optional."
)
@click.option("-o", "--output", default=".", metavar="FOLDER", help="Parent folder of the project.")
@click.option("--licence", default="Apache-2.0", show_default=True, metavar="SPDX", help="Licence of the project.")
@click.pass_obj
def new(app: App, /, name: str | None, kind: str, source: str | None, output: str, licence: str) -> None:
    """Create a plugin project.

    The project is complete: a working method, its card, its hooks, its tests, its licence and a workflow for continuous
    integration. The kind "model" is a model card.

    \b
    Examples:
      xaihub plugins new celldrop
      xaihub plugins new evidence-share --kind metric -o ~/code --licence MIT
      xaihub plugins new --from my_method.py
    """
    from xaihub.plugin_tools.scaffold import NO_TEXT, new_plugin

    if name is None and source is None:
        raise click.UsageError("give the NAME of the plugin")
    name = name or Path(source or "").stem.strip("_")
    taken = [*_root().commands, *app.plugin_commands]
    folder = new_plugin(app.hub, name, kind, output, licence=licence, commands=taken, source=source or "")
    put(str(folder))
    if (folder / "LICENSE").read_text(encoding="utf-8").startswith(NO_TEXT):
        say(f"note: put the text of {licence} into {folder / 'LICENSE'}")
    say(f"next: xaihub plugins install --editable {folder}")


class _Install(click.Command):
    """Forwards unknown options to pip, but none after "--", where scripts put names that they did not choose."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse options after "--", which click itself takes for more arguments."""
        names = args[args.index("--") :][1:] if "--" in args else []
        option = next((name for name in names if name.startswith("-")), None)
        if option is not None:
            raise click.UsageError(f"{option!r} after '--' is an option, not a name", ctx)
        return super().parse_args(ctx, args)


@plugins.command(cls=_Install, context_settings={"ignore_unknown_options": True})
@click.argument("packages", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PACKAGE... [PIP OPTION]...")
@click.option(
    "-e", "--editable", is_flag=True, help="Install a folder in place, so that edits take effect immediately."
)
@click.option("-U", "--upgrade", is_flag=True, help="Upgrade what is already installed.")
@click.option("-q", "--quiet", is_flag=True, help="Hide the installer's output.")
@json_option
def install(packages: tuple[str, ...], editable: bool, upgrade: bool, quiet: bool, as_json: bool) -> None:
    """Install plugins with pip (or uv).

    Loads each plugin and reports what it added. PACKAGE is anything pip accepts: a name, a folder, a file or a URL. A
    folder comes before a package of the same name; the command asks if it can, and NAME>=0 always means the package.
    Unlisted options are forwarded to pip; write their values as --option=value.

    \b
    Examples:
      xaihub plugins install ./xaihub-celldrop
      xaihub plugins install --editable ./xaihub-celldrop
      xaihub plugins install ./xaihub-celldrop --no-deps --index-url=https://example.org/simple
    """
    from xaihub.plugin_tools.installing import folders_named_like_packages
    from xaihub.plugin_tools.installing import install as run

    options = [item for item in packages if item.startswith("-")]
    wanted = [item for item in packages if not item.startswith("-")]
    if not wanted:
        raise click.UsageError("no package to install; name one")
    if not editable:
        taken = {item: f"./{item}" for item in folders_named_like_packages(wanted) if _is_meant(item)}
        wanted = [taken.get(item, item) for item in wanted]
    found = run(wanted, editable=editable, upgrade=upgrade, options=options, tell=_teller(quiet))
    if as_json:
        put_json([asdict(plugin) for plugin in found])
    else:
        for plugin in found:
            _tell_installed(plugin)
    broken = list(dict.fromkeys(plugin.distribution for plugin in found if plugin.broken))
    if broken:
        say(f"error: the installed plugin is broken (remove it: xaihub plugins uninstall {' '.join(broken)})")
        raise click.exceptions.Exit(1)


@plugins.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("-q", "--quiet", is_flag=True, help="Hide the installer's output.")
def uninstall(names: tuple[str, ...], yes: bool, quiet: bool) -> None:
    """Uninstall plugins.

    NAME is a plugin or its distribution.

    \b
    Examples:
      xaihub plugins uninstall celldrop
      xaihub plugins uninstall xaihub-celldrop -y
    """
    from xaihub.plugin_tools.installing import removable
    from xaihub.plugin_tools.installing import uninstall as run

    distributions = removable(names)
    if not yes:
        click.confirm(f"Remove {', '.join(distributions)}?", abort=True, err=True)
    left = run(distributions, tell=_teller(quiet))
    put(f"removed {', '.join(distributions)}")
    if left:
        say(f"note: {', '.join(left)} is no longer needed but stays installed; pip uninstall removes it")


@plugins.command("list")
@click.option("--load", is_flag=True, help="Load the plugins, and list what they register and their problems.")
@json_option
@click.pass_obj
def list_(app: App, /, load: bool, *, as_json: bool) -> None:
    """List installed plugins and their state.

    No plugin is loaded. A third-party plugin is new before its first load, and then ready or failed; it is skipped if
    it ended or hung an earlier command, off if XAIHUB_LOAD_PLUGINS excludes it, and in conflict if a requirement is not
    met. The load time is that of an earlier command.

    \b
    Examples:
      xaihub plugins list
      xaihub plugins list --load --json
    """
    from xaihub.plugin_tools.overview import count, overview, states

    rows = overview(app.hub, commands=_commands(app)) if load else states(app.host)
    if as_json:
        put_json(rows)
        return
    columns = ("plugin", "distribution", "version", "registered") if load else (
        "plugin", "distribution", "version", "load time", "state"
    )  # fmt: skip
    shown = [
        {
            **row,
            "plugin": row["name"],
            "load time": "" if row["seconds"] is None else f"{1000 * row['seconds']:.1f} ms",
            "registered": count(row.get("registered", {})) or ("nothing" + ", see below" * bool(row["problems"])),
            "state": ": ".join(filter(None, (row.get("state"), "; ".join(row["problems"])))),
        }
        for row in rows
    ]
    put(table(shown, columns))


@plugins.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def retry(app: App, /, names: tuple[str, ...]) -> None:
    """Load plugins again that ended or hung an earlier command.

    Until then they are skipped; installing another version also ends that. NAME is a plugin or its distribution.

    \b
    Examples:
      xaihub plugins retry celldrop
    """
    from xaihub.plugin_tools.overview import release

    for name in names:
        put(f"the next command loads {', '.join(release(app.host, name))} again")


@plugins.command()
@click.argument("words", nargs=-1, metavar="[WORD]...")
@json_option
def search(words: tuple[str, ...], as_json: bool) -> None:
    """Search the list of known plugins.

    Prints those whose name, summary or kind contains every WORD; without one, all. The list comes with xaihub, so that
    nothing is downloaded; on the page "Plugins" of the documentation it may be newer.

    \b
    Examples:
      xaihub plugins search
      xaihub plugins search metric
    """
    from xaihub.plugin_tools.known import search as run

    found = run(words)
    if as_json:
        put_json([asdict(item) for item in found])
        return
    if not found:
        say(f"no known plugin matches {' '.join(words)!r}")
        return
    rows = [{**asdict(item), "adds": ", ".join(item.adds)} for item in found]
    put(table(rows, ("name", "adds", "licence", "install", "summary")))


@plugins.command()
@click.argument("name")
@json_option
@click.pass_obj
def info(app: App, /, name: str, *, as_json: bool) -> None:
    """Show details of a plugin.

    Prints its files, hooks, what it registered, load time, dependencies and card. NAME is a plugin or its distribution.

    \b
    Examples:
      xaihub plugins info rise
      xaihub plugins info cam --json
    """
    from xaihub.plugin_tools.overview import describe

    rows = describe(app.hub, name, commands=_commands(app))
    if as_json:
        put_json(rows)
        return
    for row in rows:
        facts = {
            "distribution": f"{row['distribution']} {row['version']}".strip(),
            "summary": row["summary"],
            "licence": row["licence"],
            "URL": row["url"],
            "module": row["module"],
            "file": row["file"],
            "needs": ", ".join(row["requires"]),
            "hooks": ", ".join(row["hooks"]),
            **{kind: ", ".join(names) for kind, names in row["registered"].items()},
            "load time": f"{1000 * row['seconds']:.1f} ms"
            + (f", with {', '.join(row['heavy'])}" if row["heavy"] else ""),
            "problems": "; ".join(row["problems"]),
        }
        put(f"{row['name']}{' (built in)' if row['builtin'] else ''}")
        put("\n".join(f"  {key.replace('_', ' '):<16} {value}" for key, value in facts.items() if value))
        if row["card"]:
            put("\n" + row["card"])


@plugins.command()
@click.argument("name")
@click.option("--only", multiple=True, metavar="CHECK", help="Run only this check; repeatable.")
@option("settings", tuple[Setting, ...], (), PARAM)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="Time limit of each check.",
)
@json_option
@click.pass_obj
def check(
    app: App, /, name: str, only: tuple[str, ...], settings: tuple[Setting, ...], timeout: float, *, as_json: bool
) -> None:
    """Run the conformance checks on a plugin.

    Prints one line per check and exits with 1 if one fails. The checks run in a process of their own, which is
    replaced if the plugin ends or blocks it. NAME is a plugin, a distribution, or a single explainer, metric,
    objective, baseline, head, adapter or model. Parameters such as masks and samples are small unless -p sets them.

    \b
    Examples:
      xaihub plugins check rise
      xaihub plugins check rise -p masks=8
      xaihub --plugin ./my_method.py plugins check my_method
    """
    from xaihub.plugin_tools.conformance import check_plugin, planned

    tasks = planned(name, app.hub, only)
    shown = [(task.about.name, task.item.name) for task in tasks]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)] if shown else [0, 0]
    with put_json_list(as_json) as put_item:

        def tell(result: CheckResult) -> None:
            put_item(asdict(result))
            if not as_json:
                start = f"{result.subject:<{widths[0]}}  {result.check:<{widths[1]}}  {result.outcome:<14}"
                put(f"{start}  {result.seconds:5.1f} s  {result.advice}".rstrip())

        results = check_plugin(name, app.hub, only=only, settings=settings, each=tell, isolated=True, seconds=timeout)
    if not results and not as_json:
        put(f"{name} registers nothing that has checks")
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        culprits = ", ".join(dict.fromkeys(f"{result.subject} (plugin {result.plugin})" for result in failed))
        say(f"{len(failed)} of {len(results)} checks failed: {culprits}")
        raise click.exceptions.Exit(1)


def _root() -> click.Group:
    """Return the root group, whose commands plugins cannot replace."""
    root = click.get_current_context().find_root().command
    return root if isinstance(root, click.Group) else plugins


def _commands(app: App) -> list[tuple[str, str]]:
    """Return the commands of plugins; one named like a built-in command is reported as a problem and skipped."""
    _root().list_commands(click.get_current_context().find_root())
    return [(plugin.name, name) for name, (plugin, _) in app.plugin_commands.items() if name not in _root().commands]


def _is_meant(folder: str) -> bool:
    """Whether the user means the folder and not the package of that name; without a terminal, the folder is taken."""
    if sys.stdin is not None and sys.stdin.isatty():
        text = f"Install the folder './{folder}'? (no: the package {folder!r} from the package index)"
        return click.confirm(text, default=True, err=True)
    say(f"note: installing the folder './{folder}'; for the package of that name, write '{folder}>=0'")
    return True


def _teller(quiet: bool) -> Callable[[str], None] | None:
    def tell(line: str) -> None:
        if not line.startswith("Requirement already satisfied"):
            say(line)

    return None if quiet else tell


def _tell_installed(plugin: Installed) -> None:
    name = f"{plugin.name} ({plugin.distribution} {plugin.version})"
    if plugin.broken:
        say(f"error: plugin {name}: {'; '.join(plugin.problems) or 'registers nothing'}")
        return
    added = "; ".join(f"{kind}: {some(names)}" for kind, names in plugin.registered.items())
    put(f"{name} adds {added}")
    heavy = f"imports {', '.join(plugin.heavy)} when loaded, which slows down every command" if plugin.heavy else ""
    put(f"  loads in {1000 * plugin.seconds:.1f} ms; {heavy or 'imports nothing heavy'}")
    for problem in plugin.problems:
        say(f"warning: plugin {name}: {problem}")
