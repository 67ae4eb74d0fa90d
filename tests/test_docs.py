"""The pages say what the code does: generated parts, links, examples."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from xaihub import errors, hookspecs
from xaihub.cli import cli
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.models.cards import read_card

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
PLUGINS = sorted(item for item in (ROOT / "plugins").iterdir() if item.name.startswith("xaihub_"))
HOOKS = [name for name in dir(hookspecs) if name.startswith("xaihub_")]
SOURCES = [file for root in ("xaihub", "plugins", "zoo") for file in (ROOT / root).rglob("*.py")]


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def leads_somewhere(file: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    found = file.parent / path if path else file
    return found.exists() and (not anchor or anchor in anchors(found))


def test_the_generated_parts_are_up_to_date() -> None:
    pages = [str(file) for file in [*PAGES, ROOT / "pyproject.toml"] if "[[[cog" in file.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "cogapp", "--check", "-U", "-I", str(DOCS), *pages]
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun `make docs`"


@pytest.mark.parametrize("file", PAGES, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(file: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)\s]+)\)", file.read_text(encoding="utf-8"))

    assert [target for target in targets if not leads_somewhere(file, target)] == []


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_its_exact_signature(name: str) -> None:
    source = inspect.getsource(getattr(hookspecs, name))
    signature = re.search(r"^def (.+?):(?:  #|$)", source, re.MULTILINE)

    assert signature is not None
    assert f"def {signature.group(1)}\n" in page("reference/hooks.md")


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_examples_and_is_documented(name: str) -> None:
    command = cli.commands[name]

    assert "Examples:" in (command.help or "")
    assert [option.name for option in command.params if getattr(option, "opts", None) and not _helped(option)] == []
    assert f"## xaihub {name}\n" in page("reference/cli.md")


def _helped(option: object) -> bool:
    return bool(getattr(option, "help", None)) or option.__class__.__name__ == "Argument"


def test_every_environment_variable_is_documented() -> None:
    used = {name for file in SOURCES for name in re.findall(r"\bXAIHUB_[A-Z_]+\b", file.read_text(encoding="utf-8"))}

    assert {name for name in used if f"`{name}`" not in page("reference/environment.md")} == set()


def test_every_error_is_documented() -> None:
    kinds = [name for name in errors.__all__ if isinstance(getattr(errors, name), type)]

    assert [name for name in kinds if f"`{name}`" not in page("reference/errors.md")] == []


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_every_plugin_has_a_card_that_names_its_deviations_and_limits(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)

    assert text.startswith("# ")
    assert {"Deviations", "Limits"} <= set(headings)


def test_the_support_matrix_has_every_built_in_explainer() -> None:
    text = page("reference/support-matrix.md")
    names = Hub(PluginHost(environ={"XAIHUB_LOAD_PLUGINS": ""}).load()).explainers.names()

    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == names
    assert "**error**" not in text


@pytest.mark.parametrize("file", PAGES, ids=name_of)
def test_every_card_that_is_shown_can_be_read(file: Path, tmp_path: Path) -> None:
    cards = [text for text in blocks(file.read_text(encoding="utf-8"), "yaml") if "architecture:" in text]

    for number, text in enumerate(cards):
        card = tmp_path / f"{number}.yaml"
        card.write_text(text, encoding="utf-8")
        assert read_card(card).architecture


@pytest.mark.parametrize("file", PAGES, ids=name_of)
def test_every_python_example_compiles(file: Path) -> None:
    examples = [
        text for text in blocks(file.read_text(encoding="utf-8"), "python") if not text.startswith("def xaihub_")
    ]
    signatures = re.compile(r"^\w+\((?:\n    .*|.*\) -> [^:]+|.*\w: [^\n]*\))$", re.DOTALL)  # of reference/python.md

    for text in examples:
        code = text if not signatures.match(text.strip()) else ""
        assert compile(code, name_of(file), "exec")


def test_the_tutorial_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(blocks(page("tutorial/first-explanation.md"), "console")).splitlines()

    for line in lines:
        _, program, *arguments = shlex.split(line.replace("masks=100", "masks=8"))
        assert program == "xaihub"
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"
    assert len(lines) > 5
    assert (tmp_path / "cats.png").is_file()
