"""Preliminary maps of a method that refines its map: for a caller, in a notebook, and in the terminal."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import xaihub
from xaihub.cli import cli
from xaihub.testing import tiny_cnn

BUDGET = {"explainer": "rise", "budget": "0.3s"}


class Handle:
    """What a notebook shows in one place, one after the other."""

    def __init__(self, first: Any) -> None:
        self.shown: list[Any] = [first]

    def update(self, content: Any, *, raw: bool = False) -> None:
        self.shown.append(content)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    """A kernel that keeps what is displayed."""
    handles: list[Handle] = []

    def display(content: Any, *, display_id: bool) -> Handle:
        assert display_id
        handles.append(Handle(content))
        return handles[-1]

    shell, module = ModuleType("IPython"), ModuleType("IPython.display")
    shell.get_ipython = lambda: SimpleNamespace(kernel=1)  # type: ignore[attr-defined]
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return handles


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("convad", "first_principles", "lime", "shapley_values")]


@pytest.mark.parametrize("explainer", ["rise", "rex", *SLOW])
def test_a_caller_sees_each_preliminary_map_with_its_image(explainer: str) -> None:
    seen: list[xaihub.Explanation] = []
    found = xaihub.explain(model=tiny_cnn(), explainer=explainer, budget="0.5s", preview=seen.append)
    assert seen
    assert all(one.image is not None for one in seen)
    assert seen[0].metadata["forward_passes"] <= found.metadata["forward_passes"]


def test_a_notebook_shows_them_in_one_place_until_the_result_is_there(notebook: list[Handle]) -> None:
    model = tiny_cnn()
    xaihub.explain(model=model, **BUDGET)
    (handle,) = notebook
    assert all(isinstance(one, xaihub.Explanation) for one in handle.shown[:-1])
    assert handle.shown[-1] == {"text/plain": ""}
    assert model.runtime.preview is None
    xaihub.explain(model=model, explainer="rise", masks=20)
    xaihub.explain(model=model, preview=lambda _map: None, **BUDGET)
    assert len(notebook) == 1


def test_a_terminal_shows_them_before_the_result(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("from xaihub.testing import tiny_cnn\ndef build(): return tiny_cnn()\n", "utf-8")
    words = "-m model.py:build -e rise --budget 0.3s --terminal"
    done = CliRunner().invoke(cli, ["explain", *words.split()])
    assert done.exit_code == 0, done.stderr
    first, result = done.stdout.split("xaihub-out")
    assert first.count("▀") >= result.count("▀") > 0
    assert done.stderr.count("preliminary map after") * result.count("▀") == first.count("▀")
