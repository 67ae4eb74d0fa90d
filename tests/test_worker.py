"""Worker processes of plugins: what they may end, what a forked process inherits, and systems that have none."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any

import pytest

from tests import hostile_plugins
from xaihub.api.explain import explain_many
from xaihub.errors import PluginError
from xaihub.evaluation import isolation
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.hub.quarantine import Notes
from xaihub.hub.worker import Child, Worker
from xaihub.notices import leaving
from xaihub.plugin_tools import conformance
from xaihub.plugin_tools.onefile import register_file


@pytest.mark.parametrize(("status", "signalled"), [(None, ["killpg", "kill"]), (0, ["killpg"]), (-9, ["killpg"])])
def test_the_id_of_a_process_that_has_ended_is_not_signalled(
    monkeypatch: pytest.MonkeyPatch, status: int | None, signalled: list[str]
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(os, "killpg", lambda *_: sent.append("killpg"))
    monkeypatch.setattr(os, "kill", lambda *_: sent.append("kill"))
    near, far = Pipe()
    held = Worker(lambda: Child(1 << 22, lambda _seconds: status, near))
    far.send_bytes(b"answer")
    assert held.ask(b"", timeout=5) == b"answer"
    held.close()
    assert sent == signalled


def test_a_forked_process_leaves_the_worker_to_its_parent() -> None:
    pool = isolation._Pool()
    atexit.unregister(pool.close)
    near, _far = Pipe()
    pool.keep(Worker(lambda: Child(1 << 22, lambda _seconds: None, near)), {})
    child = os.fork()
    if child == 0:
        os._exit(0 if pool._kept is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool._kept is not None


def test_a_program_does_not_wait_for_threads_and_processes_that_foreign_code_has_left() -> None:
    child = os.fork()
    if child == 0:
        thread = threading.Thread(target=time.sleep, args=(100,))
        thread.start()
        process = get_context("fork").Process(target=time.sleep, args=(100,))
        process.start()
        leaving.LEFT.update([thread, process])
        leaving.leave(7)
        os._exit(1)
    started = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert time.monotonic() - started < 60


def test_functions_registered_for_the_exit_cannot_turn_a_failure_into_a_success() -> None:
    child = os.fork()
    if child == 0:
        leaving.leave(1)
        try:
            os._exit(0)
        except SystemExit:
            leaving.really_exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


# Systems like Windows.

MISSING = {
    os: ["fork", "killpg", "setsid", "register_at_fork", "waitid"],
    signal: ["SIGKILL", "SIGHUP", "pthread_kill"],
}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that can neither fork nor signal a group of processes."""
    for module, names in MISSING.items():
        for name in names:
            monkeypatch.delattr(module, name)
    for module in (isolation, conformance):
        monkeypatch.setattr(module, "SUPPORTED", False)


@pytest.mark.usefixtures("elsewhere")
def test_without_processes_to_fork_everything_runs_in_the_program_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    def started(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(isolation, "spawned", started)
    monkeypatch.setattr(conformance, "forked", started)
    Image.new("RGB", (8, 8)).save(tmp_path / "grey.png")
    host = PluginHost(entry_points=[], environ={}).load()
    register_file(host, hostile_plugins.__file__)
    hub = Hub(host)
    explainers = [hub.get_explainer(name) for name in ("good", "ends_process", "scales_weights", "sets_threads")]
    model = hub.load_model("tiny", device="cpu")
    good, *bad = explain_many([model], explainers, [str(tmp_path / "grey.png")], timeout=60)
    assert good.explanation is not None
    assert all(isinstance(one.error, PluginError) for one in bad)
    (found,) = conformance.check_plugin("good", hub, only=["values_are_finite"], isolated=True)
    assert found.outcome == "passed", found.advice


def test_without_locks_nothing_is_noted_and_nobody_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    notes = Notes(tmp_path)
    explainer = hostile_plugins.Good()
    with notes.loading({"plugin": "one"}, "importing it"), notes.running(explainer):
        assert not notes.settle()
    assert notes.ended() == []
    notes.hold({"plugin": "one"}, "it was interrupted")
    assert notes.held({"plugin": "one"}).startswith("it was interrupted")


def test_modules_that_every_command_imports_need_nothing_that_only_posix_has() -> None:
    lines = [
        "import os, signal, sys",
        *(f"sys.modules[{name!r}] = None" for name in ("fcntl", "resource", "termios", "pwd", "grp")),
        *(f"del {module.__name__}.{name}" for module, names in MISSING.items() for name in names),
        "import xaihub.cli, xaihub.hub.host, xaihub.hub.worker, xaihub.notices.fence, xaihub.plugin_tools.installer",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
