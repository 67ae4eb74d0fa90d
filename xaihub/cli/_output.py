"""Terminal output: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from PIL.Image import Image

    from xaihub.evaluation.board import Board, Entry
    from xaihub.evaluation.checkpoints import Checkpoints


# Whole escape sequences (window titles and links first, then colours and cursor moves), then other control characters,
# and characters that change the direction of writing or are invisible.
_CONTROL = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-9;?]*[ -/]*[@-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]",
    re.DOTALL,
)


def clean(text: str) -> str:
    """Remove control characters and escape sequences, which a plugin's metadata may contain."""
    return _CONTROL.sub("", text)


def say(text: str) -> None:
    """Write one line to stderr; where nobody can read it, work goes on and the exit code stays what it is."""
    with suppress(OSError, ValueError):  # ValueError: stderr was closed by the program itself
        click.echo(clean(" ".join(text.split())), err=True)


_results: list[TextIO] = []  # the streams of `reserved_stdout`


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Keep stdout for results; what anything else prints, from Python or by file descriptor, goes to stderr."""
    from xaihub.notices.fence import stdout_to_stderr

    own = sys.stdout
    with stdout_to_stderr() as kept, ExitStack() as stack:
        with suppress(OSError, ValueError, AttributeError):  # ValueError: not a file, as in tests and notebooks
            if kept is not None and own.fileno() == 1:
                own = stack.enter_context(open(os.dup(kept), "w", encoding=own.encoding, errors=own.errors))  # noqa: PTH123
        _results.append(own)
        stack.callback(_results.pop)
        yield


def put(text: str) -> None:
    """Write text to stdout."""
    _put("\n".join(clean(line) for line in text.split("\n")))


def _put(text: str, *, nl: bool = True) -> None:
    click.echo(text, nl=nl, file=_results[-1] if _results else None)


def note(quiet: bool) -> Callable[[str], None]:
    """Return a function that writes a note to stderr, or nothing if the user wants quiet."""
    return lambda text: None if quiet else say(f"note: {text}")


def put_json(record: Any) -> None:
    """Write a record to stdout as JSON, with control characters escaped."""
    _put(_json(record))


@contextmanager
def put_json_list(wanted: bool) -> Iterator[Callable[[Any], None]]:
    """Yield a function that writes a record to stdout as the next item of a JSON list, or nothing if none is wanted.

    The list is complete also after an error.
    """
    count = 0

    def put_item(record: Any) -> None:
        nonlocal count
        if wanted:
            _put(("," if count else "[") + "\n" + textwrap.indent(_json(record), "  "), nl=False)
            count += 1

    try:
        yield put_item
    finally:
        if wanted:
            _put("\n]" if count else "[]")


def _json(record: Any) -> str:
    from xaihub.records import plain

    text = json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False)
    return _CONTROL.sub(lambda match: json.dumps(match.group())[1:-1], text)


def table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> str:
    """Format records as a table; the last column is wrapped to the width of the terminal."""
    import shutil

    names = list(columns)
    texts = [[cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in texts), 0) for i, name in enumerate(names)]
    room = max(30, shutil.get_terminal_size((110, 24)).columns - sum(widths[:-1]) - 2 * (len(names) - 1))
    lines = []
    for line in [names, *texts]:
        start = "  ".join(text.ljust(width) for text, width in zip(line[:-1], widths[:-1], strict=True))
        wrapped = textwrap.wrap(line[-1], room) or [""]
        lines.append(f"{start}  {wrapped[0]}".rstrip())
        lines += [" " * (len(start) + 2) + more for more in wrapped[1:]]
    return "\n".join(lines)


def put_board(board: Board) -> None:
    """Print a leaderboard: one row per explainer, "mean [low, high]" per metric with its mark, controls dimmed."""
    arrows = {True: " ^", False: " v", None: ""}
    most = max((entry.count for entry in board.entries.values()), default=0)
    lines = [["explainer", *(metric + arrows[board.directions[metric]] for metric in board.metrics)]]
    lines += [
        [name, *(_entry(board.entries.get((name, metric)), most) for metric in board.metrics)]
        for name in board.explainers
    ]
    counts = sorted({entry.count for entry in board.entries.values()}) or [0]
    images = "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    accuracy = "" if board.accuracy is None else f", accuracy {board.accuracy:.3f} on {board.labelled} labelled images"
    put(f"{board.model}, {images} image{'' if images == '1' else 's'}{accuracy}")
    _put_lines(lines, dimmed=board.controls)
    put(
        "^ higher is better, v lower is better, * best method, ~ not distinguishable from it (paired test, corrected);"
        " 95 % bootstrap intervals; controls are last"
    )
    for note in board.notes:
        put(f"note: {note}")


def put_checkpoints(compared: Checkpoints) -> None:
    """Print how the scores of two checkpoints differ: one row per explainer, "difference [low, high]" per metric."""
    changes = {(one.explainer, one.metric): one for one in compared.changes}
    explainers, metrics = (list(dict.fromkeys(names)) for names in zip(*changes, strict=True))
    lines = [["explainer", *metrics]]
    for name in explainers:
        found = (changes.get((name, metric)) for metric in metrics)
        lines.append([name, *(
            "-" if one is None else f"{one.mean:+.3g} [{one.low:.3g}, {one.high:.3g}]{'*' * one.significant}"
            for one in found
        )])  # fmt: skip
    put(f"{compared.second} minus {compared.first}, paired by image")
    _put_lines(lines, dimmed=compared.controls)
    put("* significant (paired test, corrected); 95 % bootstrap intervals of the mean difference")
    for note in compared.notes:
        put(f"note: {note}")


def _put_lines(lines: Sequence[Sequence[str]], *, dimmed: Collection[str]) -> None:
    """Print cells in columns, the rows of `dimmed` explainers dimmed."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        # click strips the style if stdout is not a terminal.
        click.echo(click.style(clean(text), dim=line[0] in dimmed))


def _entry(entry: Entry | None, most: int) -> str:
    if entry is None:
        return "-"
    few = "" if entry.count == most else f" (of {entry.count})"
    return f"{entry.mean:.3g} [{entry.low:.3g}, {entry.high:.3g}]{'*' * entry.best}{'~' * entry.near_best}{few}"


def passes(number: float, direction: str) -> str:
    """Return a number of forward or backward passes in words."""
    return f"{number:g} {direction} pass{'' if number == 1 else 'es'}"


def some(names: Sequence[str], most: int = 8) -> str:
    """Return the first names as a list in words, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def cell(value: Any) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else clean(str(value))


@contextmanager
def progress(*, quiet: bool, unit: str = "images") -> Iterator[Progress]:
    """Show progress on stderr, with `unit` per second and the time left, unless it is not a terminal or `quiet`."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield Progress(None)
        return
    from rich.console import Console

    with progress_bar(Console(stderr=True), unit) as bar:
        yield Progress(bar)


def progress_bar(console: Any, unit: str, **settings: Any) -> Any:
    """Return rich's progress bar with the columns of `progress`."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.3g} {task.fields.get('unit', unit)}/s" if task.speed else "")

    start = (TextColumn("{task.description}", markup=False), BarColumn())
    columns = (*start, MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, **settings)


class Progress:
    """A progress bar, or nothing."""

    def __init__(self, bar: Any) -> None:
        """Wrap a rich progress bar, or None."""
        self._bar = bar
        self._task = None if bar is None else bar.add_task("starting", total=None)
        self._whole: Any = None
        self._before, self._last = 0, (0, 0)  # passes of earlier calls of a step, and what the last one reported

    def of(self, count: int, unit: str) -> None:
        """Show a bar of the whole as well, which `advance` moves by one of `count`."""
        if self._bar is not None and count > 1:
            self._whole = self._bar.add_task(unit, total=count, unit=unit)

    def advance(self) -> None:
        """Count one of the whole as done."""
        if self._whole is not None:
            self._bar.update(self._whole, advance=1)

    def watch(self, text: str) -> None:
        """Describe the current step, whose amount of work is unknown."""
        self._before, self._last = 0, (0, 0)
        if self._bar is not None:
            self._bar.reset(self._task, description=clean(text))
            self._set_total(None)

    def report(self, text: str, done: int, total: int) -> None:
        """Describe the current step and the progress of the whole."""
        if self._bar is not None:
            self._bar.update(self._task, description=clean(text), completed=done, total=total)

    def step(self, done: int, total: int) -> None:
        """Update the progress of the current step: forward passes of one call; `total` is 0 if it is unknown.

        A method that makes several calls, each with a total of its own, has a speed, but no known end.
        """
        if self._bar is None:
            return
        last, before = self._last
        if last and (done < last or total not in (0, before)):
            self._before += last
        self._last = (done, total)
        self._set_total(None if self._before else total or None)
        self._bar.update(self._task, completed=self._before + done)

    def _set_total(self, total: int | None) -> None:
        # An update to another total forgets the speed, and None changes nothing.
        next(task for task in self._bar.tasks if task.id == self._task).total = total


def draw(image: Image) -> None:
    """Draw an image in the terminal with half blocks."""
    import shutil

    from xaihub.explainers.rendering import terminal_lines

    columns = min(shutil.get_terminal_size((80, 24)).columns, 100)
    for line in terminal_lines(image, columns):
        cells = (f"\x1b[38;2;{u[0]};{u[1]};{u[2]};48;2;{v[0]};{v[1]};{v[2]}m▀" for u, v in line)
        click.echo("".join(cells) + "\x1b[0m", color=True)
