"""Plugins as installed distributions in a folder of their own, and the command line in a fresh process beside them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

GOOD = (
    "from xaihub import ExplainerSpec, hookimpl\n\n"
    "@hookimpl\ndef xaihub_register_explainers():\n"
    "    return [ExplainerSpec(name={name!r}, target=f'{{__name__}}:Method', summary='A constant.')]\n"
)


class Site:
    """A folder on the module path with distributions that were made by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "site"
        self.work = folder / "work"
        self.work.mkdir()
        self.names: list[str] = []
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, "PYTHONPATH": path, "XAIHUB_STATE": str(folder / "state"), "COLUMNS": "250"}

    def add(self, name: str, source: str = "", *, requires: str = "", version: str = "0.3", points: str = "") -> None:
        """Install a plugin; one without a source is good."""
        info = self.folder / f"xaihub_{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (self.folder / f"xaihub_{name}.py").write_text(source or GOOD.format(name=name), encoding="utf-8")
        (info / "entry_points.txt").write_text(points or f"[xaihub]\n{name} = xaihub_{name}\n", encoding="utf-8")
        lines = ["Metadata-Version: 2.1", f"Name: xaihub-{name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requires}"] * bool(requires)
        (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.names.append(name)
        self.environment["XAIHUB_LOAD_PLUGINS"] = ",".join(self.names)  # none of the developer's own

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "xaihub", *arguments, timeout=timeout)

    def python(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        with self._start(*arguments) as process:
            out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return self._start("-m", "xaihub", *arguments)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", *arguments],
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job ignores Ctrl-C, and its children inherit that; here it must arrive.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
