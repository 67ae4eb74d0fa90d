"""Distributions with one fault each: the corresponding check fails, and its advice says what to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from xaihub.hub import Hub
from xaihub.hub.host import PluginHost, PluginInfo
from xaihub.plugin_tools.onefile import register_file
from xaihub.plugin_tools.plugin_checks import PluginSubject
from xaihub.plugin_tools.scaffold import NO_TEXT, render
from xaihub.testing.catalogue import CheckResult, run
from xaihub.testing.kit import checks

METADATA = """\
Metadata-Version: 2.4
Name: xaihub-mine
Version: 0.3
Summary: A method of mine.
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.11
Requires-Dist: xaihub>=0.1

What it computes, in the words of its author.
"""
METHOD = "from xaihub import Explainer\n\n\nclass Mine(Explainer):\n    '''A method of mine.'''\n"
LICENCE = "The text of the licence."
TEMPLATE = render("mine", "explainer")
SENTENCE = "What it computes, in the words of its author."


def subject(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = METADATA, licence: str = LICENCE
) -> PluginSubject:
    """An installed distribution with one file."""
    info = folder / "xaihub_mine-0.3.dist-info"
    (info / "licenses").mkdir(parents=True)
    (info / "METADATA").write_text(text, encoding="utf-8")
    (info / "licenses" / "LICENSE").write_text(licence, encoding="utf-8")
    (folder / "method.py").write_text(METHOD, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    hub = Hub(PluginHost(entry_points=[], environ={}))
    register_file(hub.host, folder / "method.py")
    about = PluginInfo(name="method", distribution="xaihub-mine", version="0.3", module=str(folder / "method.py"))
    return PluginSubject(about, hub)


def failed(subject: PluginSubject) -> list[CheckResult]:
    results = [run(item, subject, "mine") for item in checks("plugin")]
    return [result for result in results if result.outcome == "failed"]


def without(start: str) -> str:
    return "".join(line for line in METADATA.splitlines(keepends=True) if not line.startswith(start))


# (METADATA, the licence's text, the check that must catch it, what the advice must say)
BAD: list[tuple[str, str, str, str]] = [
    (without("Summary"), LICENCE, "metadata_is_complete", "it has no summary: give `description`"),
    (without(SENTENCE), LICENCE, "metadata_is_complete", "it has no description: write README.md"),
    (without("Requires-Python"), LICENCE, "metadata_is_complete", "it declares no version of Python: give"),
    (without("Requires-Dist"), LICENCE, "metadata_is_complete", 'give `dependencies = ["xaihub>=X.Y"]`'),
    (METADATA.replace("xaihub>=0.1", "xaihub<9"), LICENCE, "metadata_is_complete", "does not require a version"),
    (without("License-Exp"), LICENCE, "licence_is_declared", "it declares no licence expression: give `license"),
    (
        METADATA.replace("Apache-2.0", "Apache 2"),
        LICENCE,
        "licence_is_declared",
        "'Apache 2' is not an SPDX",
    ),
    (METADATA, "", "licence_is_declared", "it does not contain the text of its licence"),
    (METADATA, NO_TEXT, "licence_is_declared", "its LICENSE does not contain the text yet"),
]


def test_a_complete_distribution_fails_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject(tmp_path, monkeypatch)

    assert [run(item, made, "mine").outcome for item in checks("plugin")] == ["passed"] * 4


@pytest.mark.parametrize(("text", "licence", "check", "advice"), BAD)
def test_a_bad_distribution_fails_one_check_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, licence: str, check: str, advice: str
) -> None:
    (result,) = failed(subject(tmp_path, monkeypatch, text, licence))

    assert result.check == check
    assert advice in result.advice


def test_what_the_template_says_of_its_own_method_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject(tmp_path, monkeypatch)
    (tmp_path / "README.md").write_text(TEMPLATE["README.md"], encoding="utf-8")

    (result,) = failed(made)

    assert result.check == "no_scaffold_text_is_left"
    assert "which the project template says of another method: describe your own method" in result.advice


def test_a_problem_that_the_host_found_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject(tmp_path, monkeypatch)
    made.info.problems.append("it is broken")

    (result,) = failed(made)

    assert (result.check, result.advice) == ("loads", "it is broken: correct it")


def test_every_check_of_plugins_catches_something() -> None:
    caught = {check for _, _, check, _ in BAD} | {"no_scaffold_text_is_left", "loads"}

    assert caught == {item.name for item in checks("plugin")}
