"""docs/how-to/train.md can be followed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from xaihub.cli import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "train.md"
# The same steps with a smaller network and fewer images.
FEWER = {
    "--size 96": "--size 96 -m test_resnet --scratch",
    "evidence:240": "evidence:16",
    "--epochs 3": "--epochs 1",
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
    assert len(lines) == 9
    files = {path.name for path in Path("runs/plain").iterdir() if path.name != ".lock"}
    assert files == set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["--skip-unreadable", "--held-out", "--save-every", "--monitor", "--head-lr-scale"])
def test_every_option_that_the_guide_names_is_there(name: str) -> None:
    assert name in PAGE.read_text(encoding="utf-8")
    assert name in {text for option in cli.commands["train"].params for text in option.opts}
