"""The pages for authors of plugins: every example and every example package runs."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

import xaihub
from tests.forked import pytest_passes
from xaihub import hookspecs, sample_photo
from xaihub.cli import cli

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
EXAMPLES = sorted(file.parent for file in (DOCS / "examples").glob("*/pyproject.toml"))
GUIDES = ["write-an-explainer", "add-a-metric", "add-an-objective", "add-an-adapter", "add-a-command", "debug-a-plugin"]
HOOKS = [name for name in dir(hookspecs) if name.startswith("xaihub_")]


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_of_a_guide_runs_with_the_files_that_it_shows(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Image.open(sample_photo()) as photo:
        photo.resize((225, 150)).save("cat.jpg")
    for text in blocks(f"how-to/{guide}.md", "python"):
        Path(text.partition("\n")[0].removeprefix("# ").replace(" ", "_")).write_text(text, encoding="utf-8")
    lines = "".join(blocks(f"how-to/{guide}.md", "console")).splitlines()

    assert lines
    for line in lines:
        prompt, program, *arguments = shlex.split(line)
        assert (prompt, program) == ("$", "xaihub")
        done = CliRunner().invoke(cli, arguments, prog_name="xaihub")
        assert done.exit_code == 0, f"{line}\n{done.output}"


def test_the_example_of_a_host_in_a_test_runs() -> None:
    (text,) = blocks("how-to/debug-a-plugin.md", "python")

    exec(compile(text, "debug-a-plugin.md", "exec"), {})  # noqa: S102


def test_the_building_blocks_run_in_order() -> None:
    scope: dict[str, Any] = {}

    for number, text in enumerate(blocks("reference/building-blocks.md", "python")):
        # Without this module's `from __future__ import annotations`, which a reader's own file may lack.
        exec(compile(text, f"building-blocks.md, example {number}", "exec", dont_inherit=True), scope)  # noqa: S102
    assert scope["heat"].shape == (32, 32)


@pytest.mark.parametrize("name", ["Target", "make_features", "make_removal", "baseline_image", "coalition_scores"])
def test_the_building_blocks_name_what_an_author_looks_for(name: str) -> None:
    assert name in "".join(blocks("reference/building-blocks.md", "python"))


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_an_example_package_is_short_and_laid_out_as_plugins_new_does(folder: Path) -> None:
    package = folder.name.replace("-", "_")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for file in (folder / package).glob("*.py") for line in file.read_text(encoding="utf-8").splitlines()]

    assert len(lines) < 60
    assert list(project["entry-points"]["xaihub"].values()) == [package]
    assert project["name"] == folder.name
    headings = set(re.findall(r"^## (.+)$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"Claim", "Equation", "Parameters", "Deviations", "Limits"} <= headings


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_an_example_package_passes_its_own_tests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in LIBRARIES.get(folder.name, ()):
        pytest.importorskip(library)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    pytest_passes("-W", "error", ".", folder=folder)


LIBRARIES = {"xaihub-zennit": ("zennit",)}


def test_there_are_two_example_packages() -> None:
    assert [folder.name for folder in EXAMPLES] == ["xaihub-srg", "xaihub-zennit"]


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_since_when_it_is_there(name: str) -> None:
    (version,) = re.findall(r"Added in (\d+\.\d+)\.", inspect.getdoc(getattr(hookspecs, name)) or "")
    page = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert xaihub.__version__.startswith(f"{version}.") or f"## [{version}" in changelog
    section = page.split(f"## {name}\n")[1].split("\n## ")[0]
    assert f"Added in {version}." in section
