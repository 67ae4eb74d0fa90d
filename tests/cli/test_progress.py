"""Progress on a terminal: how far, how fast, how long."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from xaihub.cli._output import Progress, progress_bar


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bar(clock: Clock) -> object:
    return progress_bar(Console(file=io.StringIO(), width=120), "images", get_time=clock)


def line(bar: object, place: int = 0) -> str:
    """The row of a task, as it is drawn."""
    console = Console(file=io.StringIO(), width=120)
    console.print(bar.make_tasks_table([bar.tasks[place]]))  # type: ignore[attr-defined]
    return " ".join(str(console.file.getvalue()).split())  # type: ignore[attr-defined]


def test_one_call_shows_images_per_second_and_the_time_left(bar: object, clock: Clock) -> None:
    shown = Progress(bar)
    shown.watch("cat: rise")
    for done in (100, 200, 300):
        clock.now += 10
        shown.step(done, 1000)
    assert line(bar).startswith("cat: rise ")
    assert line(bar).endswith("300/1000 10 images/s 0:01:10")


def test_several_calls_add_up_and_promise_no_end(bar: object, clock: Clock) -> None:
    shown = Progress(bar)
    shown.watch("cat: convad")
    for done, total in ((4, 4), (14, 14), (10, 28), (28, 28), (2, 0), (3, 0)):
        clock.now += 1
        shown.step(done, total)
    assert line(bar).endswith("49/? 9 images/s")
    shown.watch("cat: rise")
    assert line(bar).endswith("0/?")
    clock.now += 1
    shown.step(5, 10)
    assert "5/10" in line(bar)


def test_the_whole_has_a_row_of_its_own(bar: object, clock: Clock) -> None:
    shown = Progress(bar)
    shown.of(20, "explanations")
    for _ in range(5):
        clock.now += 2
        shown.advance()
    assert line(bar, 1).startswith("explanations ")
    assert line(bar, 1).endswith("5/20 0.5 explanations/s 0:00:30")


def test_a_single_result_has_one_row_and_no_terminal_none(bar: object) -> None:
    Progress(bar).of(1, "explanations")
    assert len(bar.tasks) == 1  # type: ignore[attr-defined]
    nothing = Progress(None)
    nothing.of(9, "explanations")
    nothing.watch("x")
    nothing.step(1, 2)
    nothing.advance()
    nothing.report("x", 1, 2)
