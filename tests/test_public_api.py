"""Public names, their arguments and the hooks, as pinned in public_api.txt."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import xaihub
from xaihub import hookspecs

ROOT = Path(__file__).resolve().parents[1]
HOOKS = [name for name in dir(hookspecs) if name.startswith("xaihub_")]


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("public_api", ROOT / "docs" / "public_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_public_names_and_the_signatures_of_the_hooks_are_those_that_are_pinned() -> None:
    tool = generator()
    pinned = tool.PIN.read_text(encoding="utf-8").splitlines()

    changes = list(difflib.unified_diff(pinned, tool.public_api().splitlines(), "pinned", "now", n=0))

    assert changes == [], "\n".join([*changes, "if this is meant: make api, a line in CHANGELOG.md, and a new version"])


def test_the_pin_has_every_public_name_of_the_package() -> None:
    pinned = generator().PIN.read_text(encoding="utf-8")

    missing = [name for name in xaihub.__all__ if not re.search(rf"^xaihub\.{name}\b", pinned, re.MULTILINE)]
    assert missing == []


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_takes_nothing_and_says_since_when_it_is_there(name: str) -> None:
    hook = getattr(hookspecs, name)
    since = re.search(r"^Added in (\d+)\.(\d+)\.$", inspect.getdoc(hook) or "", re.MULTILINE)

    assert since is not None
    assert tuple(map(int, since.groups())) <= tuple(map(int, xaihub.__version__.split(".")[:2]))
    assert list(inspect.signature(hook).parameters) == []
