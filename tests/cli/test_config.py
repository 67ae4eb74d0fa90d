"""`xaihub config`, the defaults and templates that it saves, and `xaihub explain --open`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from xaihub.cli import _defaults
from xaihub.cli.compare import compare
from xaihub.cli.explain import explain

from .conftest import Run


@pytest.fixture(params=[explain, compare], ids=["explain", "compare"])
def options(request: pytest.FixtureRequest, run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command without its work, and return the options that it was given."""
    command, given = request.param, list[Any]()
    monkeypatch.setattr(command, "callback", lambda **values: given.append(values))

    def invoke(*args: str) -> Any:
        done = run(command.name, *args)
        assert done.exit_code == 0, done.stderr
        return given.pop()

    return invoke


def written(text: str) -> Path:
    file = _defaults.place()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
    return file


def test_what_is_set_is_shown_kept_as_toml_and_removed(run: Run) -> None:
    assert run("config").stdout.startswith(f"{_defaults.place()}\nnothing is set")
    for words in ("model resnet50", "seed -1", "smooth off", "batch-size 4", "quick.explainer gradcam rise"):
        assert run("config", "set", *words.split()).exit_code == 0
    assert tomllib.loads(_defaults.place().read_text("utf-8")) == {
        "model": "resnet50",
        "seed": -1,
        "smooth": False,
        "batch_size": 4,
        "template": {"quick": {"explainer": ["gradcam", "rise"]}},
    }
    lines = [line.split() for line in run("config").stdout.splitlines()]
    assert ["model", '"resnet50"', "file"] in lines
    assert ["quick.explainer", '["gradcam",', '"rise"]', "file"] in lines
    for key in ("model", "seed", "smooth", "batch-size", "quick"):
        assert run("config", "unset", key).exit_code == 0
    assert _defaults.read() == ({}, {})


@pytest.mark.parametrize("text", ['a "quoted" \\ path', "naïve 🐈 #1", "[x] = 'y'"])
def test_any_printable_text_survives_the_file(run: Run, text: str) -> None:
    assert run("config", "set", "model", text, "resnet18").exit_code == 0
    assert _defaults.read() == ({"model": (text, "resnet18")}, {})


def test_the_command_line_wins_over_the_environment_over_the_template_over_the_file(
    run: Run, options: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options()["models"] == ("efficientnet_lite0",)
    run("config", "set", "model", "of_the_file")
    run("config", "set", "alpha", "0.25")
    assert (options()["models"], options()["alpha"]) == (("of_the_file",), 0.25)
    run("config", "set", "quick.model", "of_the_template")
    run("config", "set", "quick.param", "rise.masks=200", "cell=8")
    found = options("-T", "quick")
    assert (found["models"], found["alpha"]) == (("of_the_template",), 0.25)
    assert [(one.who, one.name, one.value) for one in found["settings"]] == [
        ("rise", "masks", "200"),
        ("", "cell", "8"),
    ]
    monkeypatch.setenv("XAIHUB_MODEL", "one two")
    monkeypatch.setenv("XAIHUB_ALPHA", "")
    assert options("-T", "quick")["models"] == ("one", "two")
    assert options("-T", "quick")["alpha"] == 0.25
    assert "XAIHUB_MODEL (instead of the file's)" in run("config").stdout
    assert options("-m", "typed", "-T", "quick")["models"] == ("typed",)


def test_other_commands_read_no_defaults(run: Run) -> None:
    written("not toml")
    for command in ("--help", "evaluate --help", "rank --help", "train --help", "info"):
        assert run(*command.split()).exit_code == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("modl", "x"), "modl: not an option that can have another default (did you mean 'model'?)"),
        (("output", "x"), "these can be set: model, explainer"),
        (("alpha", "7"), "alpha: 7.0 is not in the range 0<=x<=1"),
        (("alpha", "nan"), "alpha: nan is not a finite number"),
        (("seed", "9" * 30), "is not a 64-bit integer"),
        (("precision", "f33"), "'f33' is not one of 'f32'"),
        (("batch_size", "2", "3"), "batch_size: --batch-size takes one value, not 2"),
        (("param", "rise"), "param: "),
        (("model", "a\nb"), "has control characters"),
        (("model", "\udcff"), "has control characters"),
        (("a b.model", "x"), "'a b' is not a name for a template"),
    ],
)
def test_what_an_option_would_not_take_is_refused_and_nothing_is_written(
    run: Run, words: tuple[str, ...], reason: str
) -> None:
    done = run("config", "set", *words)
    assert done.exit_code == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not _defaults.place().exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model =", "cannot read the file of defaults"),
        ("x = " + "[" * 5000, "cannot read the file of defaults"),
        ("\0", "cannot read the file of defaults"),
        ("alpha = 7", "alpha in "),
        ("alpha = nan", "is not a finite number"),
        ("output = 'x'", "output in "),
        ("model = {a = 1}", "is not a text, number or truth value"),
        ("model = [['a']]", "is not a text, number or truth value"),
        ("template = 1", "is not a set of tables"),
        ("template.quick = 1", "is not a set of tables"),
        ("[template.quick]\nmodl = 'x'", "template.quick.modl in "),
    ],
)
def test_a_broken_file_costs_one_line_and_is_not_overwritten(run: Run, text: str, reason: str) -> None:
    file = written(text)
    for words in (["explain"], ["compare"], ["config"], ["config", "set", "seed", "1"], ["config", "unset", "seed"]):
        done = run(*words)
        assert done.exit_code != 0
        assert reason in done.stderr
        assert str(file) in done.stderr
        assert done.stderr.count("\n") == 1
    assert file.read_text("utf-8") == text


def test_a_broken_variable_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XAIHUB_THREADS", "many")
    assert "XAIHUB_THREADS: 'many' is not a valid integer" in run("explain").stderr


def test_an_unknown_template_or_key_is_suggested(run: Run) -> None:
    run("config", "set", "quick.explainer", "rise")
    assert "there is no template 'quik' (did you mean 'quick'?)" in run("explain", "-T", "quik").stderr
    assert "did you mean 'quick.explainer'?" in run("config", "unset", "quick.explainr").stderr


def test_a_template_makes_the_results_and_open_shows_them(
    run: Run, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(click, "launch", lambda file: opened.append(file) or 1)
    run("config", "set", "quick.explainer", "control_centre", "control_random")
    done = run("explain", str(cat), "-T", "quick", "-o", "out", "--json")
    assert [record["explainer"] for record in json.loads(done.stdout)] == ["control_centre", "control_random"]
    done = run("explain", str(cat), "-e", "control_centre", "-o", "out/one.png", "--open")
    assert done.exit_code == 0
    assert "this system has no viewer for out/one.png" in done.stderr
    run("explain", str(cat), "-T", "quick", "-o", "out", "--html", "--open")
    assert opened == [str(tmp_path / "out" / "one.png"), str(tmp_path / "out" / "cat.html")]
    done = run("explain", str(cat), "--open", "--json")
    assert done.exit_code == 2
    assert "--open cannot be combined with --json" in done.stderr
    assert len(opened) == 2
