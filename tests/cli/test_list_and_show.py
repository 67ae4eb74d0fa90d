"""`xaihub list` and `xaihub show`, and the group itself."""

from __future__ import annotations

import json
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from xaihub import ExplainerSpec, MetricSpec, hookimpl
from xaihub.cli import cli
from xaihub.cli._app import App
from xaihub.cli.show import _lines
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost

Run = Callable[..., Result]
EXPLAINERS = {"gradcam", "rise", "integrated_gradients", "occlusion", "kernel_shap", "shap", "attention_rollout"}


def run_with(plugin: object, *arguments: str) -> Result:
    """Run the command line with one extra plugin, called "extra"."""
    host = PluginHost().load()
    host.register(plugin, name="extra")
    return CliRunner().invoke(cli, list(arguments), obj=App(Hub(host)), prog_name="xaihub")


def test_list_shows_every_kind(run: Run) -> None:
    result = run("list")
    assert result.exit_code == 0, result.stderr
    for heading in ("EXPLAINERS", "METRICS", "MODELS", "ADAPTERS", "PLUGINS"):
        assert heading in result.stdout
    assert "efficientnet_lite0" in result.stdout


def test_list_as_json_is_one_record_each(run: Run) -> None:
    records = json.loads(run("list", "explainers", "--json").stdout)
    assert {record["name"] for record in records} >= EXPLAINERS
    assert all(record["summary"] and record["cost"] for record in records)


def test_no_built_in_plugin_has_a_problem(run: Run) -> None:
    records = json.loads(run("list", "plugins", "--json").stdout)
    assert [record["name"] for record in records if record["problems"]] == []
    assert all(record["builtin"] for record in records)


def test_timm_names_are_listed_by_pattern(run: Run) -> None:
    names = run("list", "models", "--timm", "vit_tiny*").stdout.splitlines()
    assert "vit_tiny_patch16_224" in names
    assert "vit_tiny_patch16_224.augreg_in21k_ft_in1k" in names
    assert all(name.startswith("vit_tiny") for name in names)


@pytest.mark.parametrize("name", sorted(EXPLAINERS))
def test_a_card_tells_paper_parameters_needs_cost_and_limits(run: Run, name: str) -> None:
    record = json.loads(run("show", name, "--json").stdout)
    assert record["paper"]["url"].startswith("https://")
    assert record["needs"]
    assert record["cost"]
    assert record["limits"]
    assert all(item["description"] for item in record["parameters"])
    text = run("show", name).stdout
    assert record["paper"]["title"] in text


@pytest.mark.parametrize(
    ("higher_is_better", "shown"),
    [(True, "higher is better"), (False, "lower is better"), (None, "neither end is better")],
)
def test_the_card_of_a_metric_states_its_direction(higher_is_better: bool | None, shown: str) -> None:
    class Plugin:
        @hookimpl
        def xaihub_register_metrics(self) -> list[MetricSpec]:
            target = "xaihub_metrics_curves.areas:Deletion"
            return [MetricSpec(name="mine", target=target, higher_is_better=higher_is_better)]

    lines = run_with(Plugin(), "show", "mine").stdout.splitlines()

    assert f"  {'direction':<15} {shown}" in lines


def test_a_long_key_of_a_card_is_separated_from_its_value() -> None:
    assert list(_lines({"a_key_of_sixteen": False})) == ["  a key of sixteen no"]


def test_a_model_card_tells_weights_and_licence(run: Run) -> None:
    text = run("show", "efficientnet_lite0").stdout
    assert "Apache-2.0" in text
    assert "579344248a93" in text


def test_an_unknown_name_gets_near_ones(run: Run) -> None:
    result = run("show", "gradcan")
    assert result.exit_code == 2
    assert "did you mean 'gradcam'" in result.stderr


def test_an_unknown_command_gets_near_ones(run: Run) -> None:
    result = run("explian")
    assert result.exit_code == 2
    assert "error: there is no command 'explian', did you mean 'explain'?" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["explain", "compare", "list", "show"])
def test_every_help_has_examples(run: Run, command: str) -> None:
    result = run(command, "-h")
    assert result.exit_code == 0
    assert f"xaihub {command}" in result.stdout.split("Examples:")[1]


def test_a_plugin_can_add_a_command_but_not_replace_one() -> None:
    class Plugin:
        @hookimpl
        def xaihub_register_commands(self) -> list[click.Command]:
            return [
                click.Command("greet", callback=lambda: click.echo("hello"), help="Say hello."),
                click.Command("explain", callback=lambda: click.echo("hijacked")),
            ]

    assert run_with(Plugin(), "greet").stdout == "hello\n"
    assert "hijacked" not in run_with(Plugin(), "explain", "--help").stdout
    overview = run_with(Plugin(), "--help")
    assert "Say hello." in overview.stdout
    assert "the command 'explain' is built in" in overview.stderr


def test_a_plugin_command_that_fails_is_named() -> None:
    class Plugin:
        @hookimpl
        def xaihub_register_commands(self) -> list[click.Command]:
            def fail() -> None:
                raise ZeroDivisionError("oh")

            return [click.Command("fail", callback=fail)]

    result = run_with(Plugin(), "fail")
    assert result.exit_code == 1
    assert "ZeroDivisionError: oh" in result.stderr
    assert "Traceback" not in result.stderr


def test_escape_sequences_in_a_summary_are_removed() -> None:
    class Plugin:
        @hookimpl
        def xaihub_register_explainers(self) -> list[ExplainerSpec]:
            return [ExplainerSpec(name="evil", target="x:y", summary="red \x1b[31malert\x07 end")]

    result = run_with(Plugin(), "list", "explainers")
    assert "red alert end" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_broken_plugin_is_named_once_and_costs_nothing_else() -> None:
    class Plugin:
        @hookimpl
        def xaihub_register_explainers(self) -> list[ExplainerSpec]:
            raise SystemExit(3)

    result = run_with(Plugin(), "list", "explainers")
    assert result.exit_code == 0
    assert "rise" in result.stdout
    assert result.stderr.count("plugin 'extra'") == 1


def test_a_plugin_whose_class_cannot_be_imported_is_one_line() -> None:
    class Plugin:
        @hookimpl
        def xaihub_register_explainers(self) -> list[ExplainerSpec]:
            return [ExplainerSpec(name="ghost", target="no_such_module.method:Ghost", summary="Not there.")]

    result = run_with(Plugin(), "explain", "-e", "ghost")
    assert result.exit_code == 1
    assert result.stderr.strip() == "error: plugin 'extra': there is no module 'no_such_module'"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_completion_script(run: Run, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_XAIHUB_COMPLETE", f"{shell}_source")
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", lambda *_: None)
    assert "_XAIHUB_COMPLETE" in run().stdout


def test_names_are_completed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_XAIHUB_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", "xaihub explain -e gradc")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert "gradcam\n" in run().stdout


def test_things_of_two_kinds_with_one_name_are_both_shown(run: Run) -> None:
    first = run("show", "shapley")
    assert first.stdout.startswith("shapley (explainer)")
    assert "xaihub show 'objective:shapley'" in first.stdout
    other = run("show", "objective:shapley")
    assert other.stdout.startswith("shapley (objective)")
    assert "lambda" in other.stdout
    assert run("show", "objective:rise").exit_code == 2
