"""Single-file plugins: files with classes only, which are parsed and not imported."""

from __future__ import annotations

import random
from pathlib import Path

from tests.fuzzing.driver import Format, nasty
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.onefile import register_file

SOURCE = '''"""A plugin."""

import os
from xaihub import Explainer, Metric

os.mkdir("canary")


class CellDrop(Explainer):
    """Drops cells."""

    name = "celldrop"
    summary = "S."
    limits = "L."
    needs = ("black-box",)
    tags = ("a", "b")
    size: int = 3

    def attribute(self, model, inputs, target):
        return inputs


class Share(Metric):
    """A share."""

    higher_is_better = False
    bounds = (0.0, 1.0)
    axes = ("x", "y")

    def score(self, case):
        return 1.0
'''
FIELDS = (
    "name",
    "summary",
    "limits",
    "needs",
    "tags",
    "higher_is_better",
    "bounds",
    "axes",
    "cost",
    "plugin",
    "target",
)


def _change(data: bytes, draw: random.Random) -> bytes:
    text = data.decode()
    for _ in range(draw.choice((1, 1, 3))):
        value = draw.choice((repr(nasty(draw)), "(" * 300 + ")" * 300, "-" * 5000 + "1", "'\\ud800'", "1j", "b'x'",
                             "...", "{1: 2}", "{1, 2}", "9" * 6000, "lambda: 0", "f'{1}'", "[[]] * 9",
                             "'\\d'"))  # fmt: skip
        line = f"    {draw.choice(FIELDS)} = {value}\n"
        place = text.index("\n\n    def ", draw.choice((0, text.index("class Share"))))
        text = text[: place + 1] + line + text[place + 1 :]
    return text.encode(errors="surrogatepass")


def _read(file: Path) -> None:
    hub = Hub(PluginHost(entry_points=[], environ={}))
    source = file.read_bytes()
    if b"xaihub_" not in source and b"hookimpl" not in source:  # a file with hooks is imported, as its user wants
        register_file(hub.host, file)
        for registry in hub.registries.values():
            for spec in registry:
                _ = spec.name, spec.summary, getattr(spec, "direction", "")


FORMATS = (
    Format(name="plugin file", seeds=lambda: [SOURCE.encode()], change=_change, read=_read, file="my_plugin.py"),
)
