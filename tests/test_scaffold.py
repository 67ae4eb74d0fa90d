"""`xaihub plugins new`: a complete project, written completely or not at all."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.forked import pytest_passes
from xaihub.cli import cli
from xaihub.errors import OutputError, ParameterError, XaihubError
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.scaffold import KINDS, NO_TEXT, new_plugin, render

ROOT = Path(__file__).resolve().parents[1]
HEADINGS = ["Claim", "Deviations", "Limits", "Develop"]
# What differs from kind to kind is the command below; the explainer's project is tested where the tutorial is followed.
OTHERS = [kind for kind in KINDS if kind != "explainer"]


@pytest.fixture(scope="module")
def hub() -> Hub:
    return Hub(PluginHost(environ={"XAIHUB_LOAD_PLUGINS": ""}).load())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plugins", "new", *arguments], prog_name="xaihub")


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_is_valid_and_its_entry_point_leads_to_its_hooks(kind: str) -> None:
    files = render("my-thing", kind)

    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["entry-points"] == {"xaihub": {"my_thing": "xaihub_my_thing"}}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["xaihub_my_thing"]
    assert set(files) | {"xaihub_my_thing/method.py"} == {
        ".github/workflows/check.yml",
        ".gitignore",
        "LICENSE",
        "pyproject.toml",
        "README.md",
        "xaihub_my_thing/__init__.py",
        "xaihub_my_thing/method.py",
        "tests/test_my_thing.py",
    }
    steps = yaml.safe_load(files[".github/workflows/check.yml"])["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps[-2:]] == ["xaihub plugins check my_thing", "python -m pytest"]
    assert files["LICENSE"].lstrip().startswith("Apache License")
    for path in files:
        assert "{{" not in files[path].replace("${{ matrix", "")
        assert files[path].endswith("\n")
    for path in (path for path in files if path.endswith(".py")):
        assert ast.parse(files[path])
    assert [line[3:] for line in files["README.md"].splitlines() if line[3:] in HEADINGS] == HEADINGS


def test_the_projects_of_the_other_kinds_pass_their_own_tests_untouched(hub: Hub, tmp_path: Path) -> None:
    folders = [new_plugin(hub, f"trial-{kind}", kind, tmp_path) for kind in OTHERS]
    pytest_passes(
        "--import-mode=importlib", "-c", os.devnull, "-W", "error", *folders, folder=tmp_path, path=tuple(folders)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_generated_code_keeps_to_the_project_s_own_style(kind: str, tmp_path: Path, hub: Hub) -> None:
    folder = new_plugin(hub, "my-thing", kind, tmp_path)
    ruff = [Path(sys.executable).with_name("ruff"), "--config", ROOT / "pyproject.toml"]
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            [*ruff[:1], *command, *ruff[1:], folder / "xaihub_my_thing"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_says_where_the_project_is_and_what_to_do_next(tmp_path: Path) -> None:
    result = run("evidence-share", "--kind", "metric", "-o", str(tmp_path / "new" / "place"), "--licence", "MIT")

    folder = tmp_path / "new" / "place" / "xaihub-evidence-share"
    assert (result.exit_code, result.stdout) == (0, f"{folder}\n")
    assert f"xaihub plugins install --editable {folder}" in result.stderr
    assert 'license = "MIT"' in (folder / "pyproject.toml").read_text(encoding="utf-8")
    assert "class EvidenceShare(Metric)" in (folder / "xaihub_evidence_share" / "method.py").read_text(encoding="utf-8")
    assert [item.name for item in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "Guided LRP",
            "'Guided LRP' is not a valid plugin name: use lower-case letters, digits and single hyphens",
        ),
        ("../up", "'../up' is not a valid plugin name"),
        ("", "'' is not a valid plugin name"),
        ("9lives", "'9lives' is not a valid plugin name"),
        ("a" * 51, "is not a valid plugin name"),
        ("my--x", "for example 'my-x'"),
        ("none", "its class would be called None"),
        ("explainer", "its class would be called Explainer"),
        ("rise", "a plugin called 'rise' already exists"),
        ("xaihub-rise", "a plugin called 'rise' already exists"),
        ("gradcam", "explainer 'gradcam' belongs to plugin 'cam'"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_and_nothing_is_written(
    hub: Hub, tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        new_plugin(hub, name, "explainer", tmp_path)

    assert reason in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_command_cannot_be_called_like_a_built_in_one(tmp_path: Path) -> None:
    result = run("explain", "--kind", "command", "-o", str(tmp_path))

    assert result.exit_code == 2
    assert "a command called 'explain' already exists" in result.stderr


def test_a_licence_that_is_no_expression_is_refused(hub: Hub, tmp_path: Path) -> None:
    for licence in ('MIT"\n[project]', "Apache 2", "Free", ""):
        with pytest.raises(ParameterError, match="is not an SPDX expression"):
            new_plugin(hub, "mine", "explainer", tmp_path, licence=licence)


def test_a_licence_whose_text_is_not_shipped_is_named_in_its_file(tmp_path: Path) -> None:
    result = run("mine", "-o", str(tmp_path), "--licence", "gpl-3.0-only")

    folder = tmp_path / "xaihub-mine"
    assert "put the text of gpl-3.0-only into" in result.stderr
    assert 'license = "GPL-3.0-only"' in (folder / "pyproject.toml").read_text(encoding="utf-8")
    assert (folder / "LICENSE").read_text(encoding="utf-8").startswith(NO_TEXT)


ONE_FILE = '''
"""One file.

It says "more" about it.
"""

import torch

from xaihub import Explainer, GlobalExplainer


class TimesInput(Explainer):
    """Gradient times the "input"."""

    limits = "Noisy."
    needs = ("gradients",)
    cost = "1 forward and 1 backward pass"

    def attribute(self, model, inputs, target):
        inputs.requires_grad_()
        return torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0] * inputs.detach()


class Anything(GlobalExplainer):
    """Nothing yet."""

    def rank(self, model, data):
        raise NotImplementedError
'''


def test_a_single_file_becomes_a_package_that_passes_its_own_tests(tmp_path: Path) -> None:
    (tmp_path / "one_file.py").write_text(ONE_FILE, encoding="utf-8")

    result = run("--from", str(tmp_path / "one_file.py"), "-o", str(tmp_path), "--licence", "MIT")

    folder = tmp_path / "xaihub-one-file"
    assert (result.exit_code, result.stdout) == (0, f"{folder}\n"), result.output
    assert (folder / "xaihub_one_file" / "method.py").read_text(encoding="utf-8") == ONE_FILE
    assert 'It says "more" about it.' in (folder / "README.md").read_text(encoding="utf-8")
    pytest_passes("-W", "error", folder, folder=folder)
    script = "import sys, xaihub_one_file as p; print(p.xaihub_register_explainers(), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert "summary='Gradient times the \"input\".'" in found.stdout
    assert "needs=('gradients',)" in found.stdout
    assert found.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import near\n" + ONE_FILE, "imports 'near' from its folder, which the package would lack"),
        ("from .near import x\n" + ONE_FILE, "from its folder, which the package would lack"),
        ("x = 1\n", "registers nothing"),
        ("x = \n", "is not valid Python"),
    ],
)
def test_a_file_that_cannot_become_a_package_is_refused(hub: Hub, tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / "near.py").touch()
    (tmp_path / "one.py").write_text(source, encoding="utf-8")

    with pytest.raises(XaihubError, match=reason):
        new_plugin(hub, "one", "explainer", tmp_path / "new", source=str(tmp_path / "one.py"))
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_never_touched(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "xaihub-mine").symlink_to("nowhere")
    (tmp_path / "xaihub-other").mkdir()
    for name in ("mine", "other"):
        with pytest.raises(OutputError, match=f"'.*xaihub-{name}' already exists"):
            new_plugin(hub, name, "explainer", tmp_path)

    assert sorted(item.name for item in tmp_path.iterdir()) == ["xaihub-mine", "xaihub-other"]


def test_a_failure_half_way_leaves_nothing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="No space left on device"):
        new_plugin(hub, "mine", "explainer", tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    result = run("mine", "-o", str(tmp_path / "file"))

    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot write ")
    assert len(result.stderr.splitlines()) == 1
