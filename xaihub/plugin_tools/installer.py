"""The installer of this environment, pip or uv, run in a process of its own that Ctrl-C cannot tear apart."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import util

from xaihub.errors import PluginError

__all__ = ["Stopped", "WrittenAndStopped", "command", "last_words", "run", "shown"]

# From these words on the installer writes into the environment, which takes a moment and must not be cut short.
WRITING = ("Installing collected packages", "Attempting uninstall", "Uninstalling ", "Prepared ", "Uninstalled ")


class Stopped(PluginError):
    """The user stopped an install; the hint says what it left."""

    exit_code = 130


def _program() -> list[str]:
    """Return the command of the installer for this environment: pip, or uv where the environment has no pip.

    Raises:
        PluginError: There is neither.
    """
    if util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]  # -P: a folder called pip in the working directory is not it
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip"]
    raise PluginError(
        "plugins cannot be installed here: this environment has no pip, and there is no uv on the PATH",
        hint=f"run {shlex.quote(sys.executable)} -m ensurepip, or install uv",
    )


def command(verb: str, *arguments: str) -> list[str]:
    """Return the whole command that installs or uninstalls, without questions.

    Raises:
        PluginError: There is no installer.
    """
    program = _program()
    if program[0] == sys.executable:
        options = ["--disable-pip-version-check", "--no-input"]
        return [*program, verb, *options, *(["-y"] if verb == "uninstall" else []), *arguments]
    return [*program, verb, "--python", sys.executable, *arguments]


def shown() -> str:
    """Return the start of the command that removes a distribution which is no plugin, as a user would type it."""
    return "pip uninstall" if util.find_spec("pip") is not None else "uv pip uninstall"


class WrittenAndStopped(Exception):
    """The user asked to stop while the installer was writing, so it was let to its end."""


def run(words: list[str], tell: Callable[[str], None] | None) -> tuple[int, list[str]]:
    """Run an installer, and stop it when the user asks, but not in the middle of writing.

    It gets a session of its own, so that Ctrl-C reaches it through here only: before it writes into the environment it
    is stopped at once, and everything it did lies in temporary folders; afterwards it is let to its end.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(  # noqa: S603 - what is run is the installer that was found, with the user's own words
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    lines: list[str] = []
    asked = False
    with process:
        while True:
            try:
                line = process.stdout.readline() if process.stdout is not None else ""
                if not line:
                    code = process.wait()
                    break
                lines.append(line.rstrip())
                if tell is not None and line.strip():
                    tell(line)
            except KeyboardInterrupt:
                asked = True
                if not any(said.strip().startswith(WRITING) for said in lines):
                    _stop(process)
                    raise Stopped("stopped before anything was written", hint="the environment is as it was") from None
                if tell is not None:
                    tell("almost done: the last step is not interrupted")
    if asked:
        raise WrittenAndStopped
    return code, lines


def _stop(process: subprocess.Popen[str]) -> None:
    """End an installer and whatever it started, gently first."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            else:
                process.terminate()
            process.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            process.wait()
            return


def last_words(lines: list[str], otherwise: str) -> str:
    """Return the error that the installer or the plugin's build named last, after what is known otherwise."""
    errors = [line.strip() for line in lines if line.startswith("no such option")]
    errors += [line.partition(":")[2].strip() for line in lines if line.lstrip().lower().startswith("error:")]
    raised = [line.strip() for line in lines if re.match(r"\s*[\w.]*(?:Error|Exception|NotFound|Exists): ", line)]
    # pip sums a failed build up in one word; the exception before it says more.
    found = raised[-1:] or errors[-1:]
    return f"{otherwise}: {found[0]}" if found else otherwise
