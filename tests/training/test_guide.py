"""docs/how-to/train.md can be followed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from xaihub.cli import cli
from xaihub.training.config import Config
from xaihub.training.config import settings as settings_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "train.md"
# The same steps with a smaller network and fewer images.
FEWER = {
    "--size 96": "--size 96 -m test_resnet --scratch",
    "evidence:240": "evidence:16",
    "--epochs 3": "--epochs 1",
    "--epochs 30": "--epochs 3",
    "--epochs 20": "--epochs 2",
    "--limit 8": "--limit 1",
    "00000_disc": "00000_ring",
}


def test_every_command_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    lines = "".join(re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)).splitlines()

    for line in lines:
        for many, few in FEWER.items():
            line = line.replace(many, few)
        prompt, program, *arguments = shlex.split(line)
        assert (prompt, program) == ("$", "xaihub")
        done = CliRunner().invoke(cli, arguments, prog_name="xaihub")
        assert done.exit_code == 0, f"{line}\n{done.output}"
    assert len(lines) == 12
    files = {path.name for path in Path("runs/plain").iterdir() if path.name != ".lock"}
    assert (Path("runs/both/baseline") / "card.yaml").exists()
    assert files == set(re.findall(r"^\| `(\w+\.\w+)` \|", text, re.MULTILINE))


def test_every_setting_and_option_that_the_guide_names_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    options = {name for command in ("train", "sweep", "evaluate", "compare") for option in cli.commands[command].params
               for name in option.opts}  # fmt: skip
    assert {*re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)} <= options | {"--help"}
    settings = {*re.findall(r"--set (\w+)=", text)} | {*re.findall(r"`(\w+)=[\w.]+` (?:uses|loads)", text)}
    assert settings <= {*Config.__struct_fields__}
    assert {"skip_unreadable", "save_every", "monitor", "head_lr_scale"} <= {*re.findall(r"\w+", text)}
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert settings_of(yaml.safe_load(example)).keys() == yaml.safe_load(example).keys()
