"""The installer, pip or uv, as a subprocess that Ctrl-C does not interrupt while it writes files."""

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

# Once the installer prints one of these, it writes into the environment and must not be interrupted.
WRITING = ("Installing collected packages", "Attempting uninstall", "Uninstalling ", "Prepared ", "Uninstalled ")


class Stopped(PluginError):
    """The user interrupted an installation; the hint describes the state of the environment."""

    exit_code = 130


def _program() -> list[str]:
    """Return the installer's command: pip, or uv if the environment has no pip.

    Raises:
        PluginError: There is neither.
    """
    if util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]  # -P: ignore a folder called pip in the working directory
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip"]
    raise PluginError(
        "plugins cannot be installed: this environment has no pip, and uv is not on the PATH",
        hint=f"run {shlex.quote(sys.executable)} -m ensurepip, or install uv",
    )


def command(verb: str, *arguments: str) -> list[str]:
    """Return the complete, non-interactive command for `verb`, "install" or "uninstall".

    Raises:
        PluginError: There is no installer.
    """
    program = _program()
    if program[0] == sys.executable:
        options = ["--disable-pip-version-check", "--no-input"]
        return [*program, verb, *options, *(["-y"] if verb == "uninstall" else []), *arguments]
    return [*program, verb, "--python", sys.executable, *arguments]


def shown() -> str:
    """Return the command that a user types to remove a distribution that is not a plugin, without its name."""
    return "pip uninstall" if util.find_spec("pip") is not None else "uv pip uninstall"


def run(words: list[str], tell: Callable[[str], None] | None) -> tuple[int, list[str], bool]:
    """Run an installer, pass its output lines to `tell`, and return its exit status, the lines, and an interruption.

    It runs in its own session, so that only this function receives Ctrl-C: before the installer writes into the
    environment it is stopped at once, having used only temporary folders; afterwards it is allowed to finish, and the
    interruption is reported.

    Raises:
        Stopped: The user interrupted it before it wrote anything.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(  # noqa: S603 - the installer that was found, with the user's own arguments
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
    )
    lines: list[str] = []
    interrupted = False
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
                interrupted = True
                if not any(line.strip().startswith(WRITING) for line in lines):
                    _stop(process)
                    raise Stopped("interrupted before anything was written", hint="nothing has changed") from None
                if tell is not None:
                    tell("the last step cannot be interrupted and will finish shortly")
    return code, lines, interrupted


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop an installer and its children, gently first."""
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
    """Return `otherwise` followed by the last error that the installer or the plugin's build printed, if any."""
    errors = [line.strip() for line in lines if line.startswith("no such option")]
    errors += [line.partition(":")[2].strip() for line in lines if line.lstrip().lower().startswith("error:")]
    raised = [line.strip() for line in lines if re.match(r"\s*[\w.]*(?:Error|Exception|NotFound|Exists): ", line)]
    # pip summarises a failed build in one word; the exception before it is more informative.
    found = raised[-1:] or errors[-1:]
    return f"{otherwise}: {found[0]}" if found else otherwise
