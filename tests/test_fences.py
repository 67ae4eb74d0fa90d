"""Fences around code of plugins: whatever it raises, and however it tries to end the process, is its own error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import xaihub
from tests import hostile_plugins as plugins
from tests.networks import model as model_of
from tests.plugins_on_disk import Site
from xaihub.cli import cli
from xaihub.errors import PluginError
from xaihub.models.process import fenced
from xaihub.notices.fence import run
from xaihub.notices.leaving import really_exit, refused


def test_ctrl_c_of_the_user_passes_even_if_the_plugin_swallows_it() -> None:
    swallowed = []

    def swallow() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except BaseException:
            swallowed.append(True)

    with pytest.raises(KeyboardInterrupt), fenced(plugins.Good()):
        swallow()
    assert swallowed


def test_a_keyboard_interrupt_is_the_plugins_where_ctrl_c_is_ignored_as_in_the_background() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(PluginError, match="KeyboardInterrupt"), fenced(plugins.Interrupts()):
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_keyboard_interrupt_in_another_thread_is_the_plugins() -> None:
    found: list[BaseException] = []

    def work() -> None:
        try:
            with fenced(plugins.Interrupts()):
                raise KeyboardInterrupt
        except PluginError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "KeyboardInterrupt" in str(found[0])


def press() -> None:
    """Press Ctrl-C, and swallow what it raises."""
    with suppress(BaseException):  # as in a destructor, or in code that reports whatever it catches
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_ends_a_command_with_130_also_if_something_has_swallowed_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xaihub.cli._app.Group.invoke", lambda *_: press())
    with pytest.raises(SystemExit) as ended:
        cli.main(["info"], prog_name="xaihub")
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_the_error_of_a_plugin_is_described_is_still_the_users(site: Site) -> None:
    odd = "class Odd(Exception):\n    def __str__(self):\n        import signal\n"
    site.add("bad", odd + "        signal.raise_signal(signal.SIGINT)\nraise Odd")
    done = site.run("list", "explainers")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "stopped")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_another_thread_has_no_part_in_ctrl_c_of_the_user() -> None:
    inside, pressed = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with fenced(plugins.Good()):
                inside.set()
                pressed.wait(60)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(60)
    with pytest.raises(KeyboardInterrupt), fenced(plugins.GoodToo()):
        press()
    pressed.set()
    thread.join()
    assert not raised


# Ends of the process.


class Leaves(xaihub.Explainer):
    def attribute(self, model: xaihub.Model, inputs: Tensor, target: xaihub.ResolvedTarget) -> Tensor:
        os._exit(0)


def test_an_explainer_that_ends_the_process_costs_one_explanation(sample: Path) -> None:
    with pytest.raises(PluginError, match=r"explainer 'leaves': SystemExit: os\._exit\(0\) ends the program"):
        xaihub.explain(sample, model=model_of(), explainer=Leaves)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


def test_an_objective_that_ends_the_process_in_a_step_is_an_error_that_names_it() -> None:
    from xaihub.objective import Objective, fenced_objective

    class Quits(Objective):
        def loss(self, *_: Any) -> Any:
            os._exit(0)

    objective = Quits()
    with pytest.raises(PluginError, match=r"objective 'Quits': SystemExit: os\._exit\(0\) ends the program"):
        fenced_objective(objective).loss(None, None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("leave", [lambda: os._exit(0), lambda: os.execlp("true", "true")])  # noqa: S606
def test_foreign_code_in_a_thread_of_its_own_cannot_end_the_process_either(leave: Any) -> None:
    def attempt() -> None:
        with pytest.raises(SystemExit, match="ends the program"):
            leave()
        refusals.append(True)

    refusals: list[bool] = []
    with refused():
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert refusals == [True]
    assert os._exit.__module__ == "posix"


def test_processes_that_foreign_code_forks_end_as_always() -> None:
    from os import _exit as before

    with refused():
        from os import _exit as kept

        child = os.fork()
        if child == 0:
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        child = os.fork()
        if child == 0:
            really_exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        assert subprocess.run([sys.executable, "-c", "import os; os._exit(5)"], check=False).returncode == 5
    child = os.fork()
    if child == 0:
        kept(6)  # of a module that was imported inside
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
    assert before is os._exit


def test_fences_may_be_nested_and_overlap_in_threads() -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with refused():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=work)
    with refused():
        thread.start()
        entered.wait(60)
    assert isinstance(run(lambda: os._exit(0)).error, SystemExit)
    leave.set()
    thread.join()
    assert os._exit.__module__ == "posix"
