"""`xaihub config`, the defaults and templates that it saves, and `xaihub explain --open`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from xaihub.api.parameters import Setting, assign
from xaihub.cli import _defaults, cli
from xaihub.cli.compare import compare
from xaihub.cli.explain import explain
from xaihub.errors import ParameterError
from xaihub.params import Parametrised

from .conftest import Run


class Rise(Parametrised):
    masks: int = 5


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
    assert ["model", '"resnet50"', "file"] in [line[:3] for line in lines]
    assert ["quick.explainer", '["gradcam",', '"rise"]', "file"] in [line[:4] for line in lines]
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


VALUES = {
    "model": "resnet50", "explainer": "rise", "metric": "deletion", "param": "rise.masks=7", "budget": "77",
    "seed": "5", "device": "cpu", "batch-size": "3", "threads": "2", "backend": "eager", "precision": "bf16",
    "colormap": "viridis", "alpha": "0.25", "smooth": "on",
}  # fmt: skip


def leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    for inner, item in command.commands.items():
        yield from leaves(f"{name} {inner}", item)


def test_every_command_that_has_the_option_takes_the_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in VALUES.items():
        run("config", "set", key, value)
    assert set(VALUES) == {key.replace("_", "-") for key in _defaults.KEYS}
    unaffected = set()
    for name, command in (pair for top in cli.commands for pair in leaves(top, cli.commands[top])):
        given: dict[str, Any] = {}
        monkeypatch.setattr(command, "callback", lambda given=given, **values: given.update(values))
        monkeypatch.setattr(command, "params", [one for one in command.params if isinstance(one, click.Option)])
        for one in command.params:
            monkeypatch.setattr(one, "required", False)
        done = run(*name.split())
        assert done.exit_code == 0, done.stderr
        for one in command.params:
            key = max(one.opts, key=len).lstrip("-")
            if key in VALUES:
                value = given[str(one.name)]
                shown = value if isinstance(value, tuple) else (value,)
                texts = {
                    "on" if v is True else f"{v.who}.{v.name}={v.value}" if isinstance(v, Setting) else str(v)
                    for v in shown
                }
                if texts != {VALUES[key]}:
                    unaffected.add((name, key))
    assert unaffected == {
        ("plugins check", "param"), ("rank", "explainer"), ("rank", "param"), ("tune", "param"),
        ("train", "param"), ("train", "batch-size"), ("train", "precision"),
        ("sweep", "param"), ("sweep", "batch-size"), ("sweep", "precision"),
        ("sweep", "explainer"), ("sweep", "metric"),
    }  # fmt: skip
    shown = {line.split()[0]: line.split("  ")[-1].strip() for line in run("config").stdout.splitlines()[2:]}
    assert shown["model"] == "compare, evaluate, explain, rank, recommend, sweep, train, tune"
    assert shown["metric"] == "evaluate, tune"
    assert shown["colormap"] == "compare, explain, report"


def test_a_command_that_has_no_such_option_does_not_read_the_file(run: Run) -> None:
    written("not toml")
    for command in ("--help", "info", "list metrics", "show insertion", "cache list"):
        assert run(*command.split()).exit_code == 0


def test_two_defaults_for_one_value_are_refused_unless_one_is_typed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(cli.commands["train"], "callback", lambda **values: given.append(values))
    run("config", "set", "model", "resnet18", "resnet50")
    done = run("train", "digits")
    assert done.exit_code == 2
    assert "--model takes one value, but its default is resnet18, resnet50; name one" in done.stderr
    assert run("train", "digits", "-m", "vit_tiny_patch16_224").exit_code == 0
    assert [one["model"] for one in given] == ["vit_tiny_patch16_224"]
    assert "(dynamic)" in run("train", "--help").stdout


def test_a_plan_is_not_changed_by_defaults(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("config", "set", "model", "resnet50")
    run("config", "set", "quick.metric", "deletion")
    assert "--template cannot be combined" in run("evaluate", "-T", "quick", "--resume", "run").stderr
    given: list[Any] = []
    monkeypatch.setattr(cli.commands["evaluate"], "callback", lambda **values: given.append(values))
    for words in ("a.png", "--config plan.yaml", "--resume run", "-T quick a.png"):
        assert run("evaluate", *words.split()).exit_code == 0
    assert [one["models"] for one in given] == [("resnet50",), (), (), ("resnet50",)]
    assert given[-1]["metrics"] == ("deletion",)


def test_the_default_of_a_parameter_applies_where_it_can(run: Run) -> None:
    specs = [SimpleNamespace(name="rise", plugin="rise", load=lambda: Rise)]
    default = [replace(Setting.parse(text), optional=True) for text in ("rise.masks=7", "lime.samples=9", "steps=3")]
    assert assign(default, specs) == [{"masks": "7"}]
    with pytest.raises(ParameterError, match="nothing named 'lime' is selected"):
        assign([Setting.parse("lime.samples=9")], specs)
    with pytest.raises(ParameterError, match="rise has no parameter 'mask'"):
        assign([replace(Setting.parse("rise.mask=7"), optional=True)], specs)


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
