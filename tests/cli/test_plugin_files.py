"""`--plugin FILE`: one file is a plugin, without packaging."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from xaihub.errors import PluginError, XaihubError
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.onefile import register_file

Run = Callable[..., Result]

METHOD = '''
"""One file with an explainer and a metric."""
import torch
from xaihub import Explainer as Base
import xaihub


class TimesInput(Base):
    """Gradient times the input.

    More of it.
    """

    limits = "Noisy."
    needs = ("gradients",)
    cost = str(3)  # not written out, so not read

    def attribute(self, model, inputs, target):
        inputs.requires_grad_()
        return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0] * inputs.detach()


class AbsTimesInput(TimesInput):
    """Its absolute value."""

    name = "unsigned"

    def attribute(self, model, inputs, target):
        return super().attribute(model, inputs, target).abs()


class MapStd(xaihub.Metric):
    """Standard deviation of the map."""

    higher_is_better = None
    bounds: tuple = (0.0, 1e9)

    def score(self, case):
        return float(case.heat.std())


class _Helper(Base):
    pass
'''
HOOKS = """
from xaihub import ExplainerSpec, hookimpl


@hookimpl
def xaihub_register_explainers():
    return [ExplainerSpec(name="hooked", target=f"{__name__}:Grey", summary="A constant.", paper=None)]


def __getattr__(name):
    from xaihub import Explainer

    class Grey(Explainer):
        class_agnostic = True

        def attribute(self, model, inputs, target):
            return inputs[:, :1] * 0 + 1

    return Grey
"""


@pytest.fixture
def method(tmp_path: Path) -> str:
    (tmp_path / "my_method.py").write_text(METHOD, encoding="utf-8")
    return str(tmp_path / "my_method.py")


@pytest.fixture
def hub(method: str) -> Hub:
    host = PluginHost(entry_points=[], environ={})
    register_file(host, method)
    return Hub(host)


def test_each_class_is_registered_under_its_name_in_snake_case_or_its_own(hub: Hub) -> None:
    assert hub.explainers.names() == ["times_input", "unsigned"]
    assert hub.metrics.names() == ["map_std"]
    assert hub.host.warnings == []


def test_docstring_and_class_attributes_fill_the_record(hub: Hub) -> None:
    explainer, metric = hub.explainers.get("times_input"), hub.metrics.get("map_std")

    assert (explainer.summary, explainer.limits, explainer.needs) == (
        "Gradient times the input.",
        "Noisy.",
        ("gradients",),
    )
    assert explainer.cost == ""
    assert (metric.higher_is_better, metric.bounds) == (None, (0.0, 1e9))
    assert explainer.plugin == "my_method"


def test_a_file_is_read_but_not_run_before_a_class_is_used(tmp_path: Path) -> None:
    text = "raise SystemExit('ran')\nfrom xaihub import Explainer\nclass Mine(Explainer):\n    '''Mine.'''\n"
    (tmp_path / "later.py").write_text(text, encoding="utf-8")
    hub = Hub(PluginHost(entry_points=[], environ={}))

    register_file(hub.host, tmp_path / "later.py")

    assert hub.explainers.names() == ["mine"]
    with pytest.raises(PluginError, match="plugin 'later' cannot load 'mine' from .*SystemExit: ran"):
        hub.get_explainer("mine")


def test_it_works_with_list_show_explain_and_evaluate(run: Run, cat: Path, method: str) -> None:
    listed = json.loads(run("--plugin", method, "list", "explainers", "--json").stdout)
    assert {"times_input", "unsigned", "rise"} <= {record["name"] for record in listed}
    assert "Noisy." in run("--plugin", method, "show", "times_input").stdout
    assert run("--plugin", method, "plugins", "info", "my_method").stdout.count("times_input") == 1
    explained = run("--plugin", method, "explain", str(cat), "-e", "times_input", "-q")
    assert explained.exit_code == 0, explained.output
    scored = run("--plugin", method, "evaluate", str(cat), "-e", "unsigned", "-k", "map_std", "-o", "runs/a", "-q")
    assert scored.exit_code == 0, scored.output
    assert "map_std" in scored.stdout


def test_a_file_with_hooks_says_itself_what_it_registers(run: Run, tmp_path: Path, cat: Path) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS, encoding="utf-8")

    result = run("--plugin", "hooks.py", "explain", str(cat), "-e", "hooked", "-q")

    assert result.exit_code == 0, result.output


def test_one_file_named_twice_is_registered_once_and_two_files_work_together(run: Run, method: str) -> None:
    Path("hooks.py").write_text(HOOKS, encoding="utf-8")

    result = run("--plugin", method, "--plugin", "my_method.py", "--plugin", "hooks.py", "list", "explainers", "--json")

    assert result.stderr == ""
    assert {"times_input", "hooked"} <= {record["name"] for record in json.loads(result.stdout)}


def test_a_built_in_keeps_its_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from xaihub import Explainer\nclass Rise(Explainer): pass\n", encoding="utf-8")

    result = run("--plugin", "mine.py", "list", "explainers", "--json")

    names = [record["name"] for record in json.loads(result.stdout)]
    assert "mine/rise" in names
    assert "explainer 'rise' belongs to plugin 'rise'; use 'mine/rise'" in result.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:", "plugin file 'bad.py' is not valid Python: line 1: invalid syntax"),
        ("a = 1\x00", "plugin file 'bad.py' is not valid Python: source code string cannot contain null bytes"),
        ("x = 1", "plugin file 'bad.py' registers nothing (derive a class from xaihub.Explainer or"),
        ("def xaihub_register_explainers(): 1", "xaihub_register_explainers is not marked with @hookimpl"),
        (
            "from xaihub import hookimpl\n@hookimpl\ndef xaihub_register_explaners(): 1",
            "there is no hook 'xaihub_register_explaners' (did you mean 'xaihub_register_explainers'",
        ),
        (
            "from xaihub import hookimpl\nimport nothing_there\n@hookimpl\ndef xaihub_register_metrics(): 1",
            "plugin file 'bad.py' cannot be imported: ModuleNotFoundError: No module named 'nothing_there'",
        ),
        ("import sys\ndef xaihub_x(): 1\nsys.exit(3)", "plugin file 'bad.py' cannot be imported: SystemExit: 3"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(run: Run, text: str, reason: str) -> None:
    Path("bad.py").write_text(text, encoding="utf-8")

    result = run("--plugin", "bad.py", "list")

    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_file_that_is_missing_is_one_clear_line(run: Run) -> None:
    result = run("--plugin", "bad.py", "export", "runs/a")

    assert (result.exit_code, result.stderr) == (1, "error: there is no plugin file 'bad.py'\n")


def test_a_folder_is_no_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "cannot read the plugin file 'folder'" in run("--plugin", "folder", "list").stderr


def test_a_command_of_a_file_is_in_the_help(run: Run) -> None:
    text = (
        "import click\nfrom xaihub import hookimpl\n@click.command()\ndef peek():\n    'Peek.'\n    click.echo('ok')\n"
        "@hookimpl\ndef xaihub_register_commands(): return [peek]\n"
    )
    Path("peek.py").write_text(text, encoding="utf-8")

    assert run("--plugin", "peek.py", "peek").stdout == "ok\n"
    assert "Peek." in run("--plugin", "peek.py", "--help").stdout


SIBLINGS = """
from xaihub import Explainer
from helpers import LEVEL


class Levelled(Explainer):
    '''A constant.'''

    class_agnostic = True

    def attribute(self, model, inputs, target):
        from later import again

        return inputs[:, :1] * 0 + again(LEVEL)
"""


def write_siblings(folder: Path, level: int, name: str) -> Path:
    folder.mkdir()
    (folder / "helpers.py").write_text(f"LEVEL = {level}\n", encoding="utf-8")
    (folder / "later.py").write_text("def again(value): return value\n", encoding="utf-8")
    file = folder / f"{name}.py"
    file.write_text(SIBLINGS.replace("Levelled", name.capitalize()), encoding="utf-8")
    return file


def test_modules_next_to_a_file_can_be_imported_and_each_file_sees_its_own(tmp_path: Path) -> None:
    hub = Hub(PluginHost(entry_points=[], environ={}))
    for number, name in enumerate(("first", "second"), start=1):
        register_file(hub.host, write_siblings(tmp_path / name, number, name))

    levels = [sys.modules[type(hub.get_explainer(name)).__module__].LEVEL for name in ("first", "second")]

    assert levels == [1, 2]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            "import helprs",
            "'mine' needs 'helprs', which is not installed and not next to 'mine.py' (did you mean 'helpers'?",
        ),
        ("import helpers.part", "plugin 'mine': there is no module 'helpers.part'"),
        ("import a_far_library", "and not next to 'mine.py' (install it, or put it there)"),
        ("import json.nothing", "plugin 'mine': there is no module 'json.nothing'"),
    ],
)
def test_nothing_local_is_suggested_to_be_installed(tmp_path: Path, line: str, error: str) -> None:
    (tmp_path / "helpers.py").touch()
    text = f"{line}\nfrom xaihub import Explainer\nclass Mine(Explainer):\n    '''Mine.'''\n"
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    hub = Hub(PluginHost(entry_points=[], environ={}))
    register_file(hub.host, tmp_path / "mine.py")

    with pytest.raises(XaihubError) as caught:
        hub.get_explainer("mine")

    assert error in str(caught.value)
    assert "pip install" not in str(caught.value)


@pytest.mark.parametrize("source", ["raise KeyboardInterrupt", "raise BaseException('x')"])
def test_whatever_a_file_raises_when_a_class_is_used_is_one_line(tmp_path: Path, source: str) -> None:
    text = f"{source}\nfrom xaihub import Explainer\nclass Mine(Explainer):\n    '''Mine.'''\n"
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    hub = Hub(PluginHost(entry_points=[], environ={}))
    register_file(hub.host, tmp_path / "mine.py")

    with pytest.raises(PluginError, match="plugin 'mine' cannot load 'mine' from"):
        hub.get_explainer("mine")


def test_what_a_file_changes_in_the_process_is_restored(tmp_path: Path) -> None:
    text = "import os, sys, torch\nos.chdir('/')\nsys.setrecursionlimit(5000)\ntorch.set_default_dtype(torch.float64)\n"
    text += "from xaihub import Explainer\nclass Mine(Explainer):\n    '''Mine.'''\n    attribute = None\n"
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    hub = Hub(PluginHost(entry_points=[], environ={}))
    register_file(hub.host, tmp_path / "mine.py")
    before = Path.cwd(), sys.getrecursionlimit(), torch.get_default_dtype()

    with pytest.warns(
        UserWarning,
        match="changed the recursion limit, the working directory .*, torch's default dtype; restored",
    ):
        hub.get_explainer("mine")

    assert (Path.cwd(), sys.getrecursionlimit(), torch.get_default_dtype()) == before
