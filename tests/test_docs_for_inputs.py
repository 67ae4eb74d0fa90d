"""The pages about scans and multispectral scenes: their cards, commands and code do what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file

from xaihub.cli import cli

PAGES = Path(__file__).resolve().parents[1] / "docs" / "how-to"
ARRAYS = {
    "explain-medical-images": {"slice.npy": (1, -1000, 400), "pair.npy": (2, 0, 1)},
    "explain-satellite-images": {"scene.npy": (12, 0, 10000)},
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def prepare(text: str, arrays: dict[str, tuple[int, float, float]]) -> None:
    """Write the page's cards into the working directory, small networks with random weights, and arrays."""
    for block in blocks(text, "yaml"):
        card: dict[str, Any] = yaml.safe_load(block)
        card["architecture"] = "test_resnet"
        size = {"num_classes": len(card["classes"]), "in_chans": card["options"]["in_chans"]}
        save_file(timm.create_model("test_resnet", **size).state_dict(), card["weights"]["path"])
        Path(card["weights"]["path"]).with_suffix(".yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    draw = np.random.default_rng(0)
    for name, (channels, low, high) in arrays.items():
        np.save(name, draw.uniform(low, high, (80, 100, channels)).astype(np.float32))


@pytest.mark.parametrize("page", ARRAYS)
def test_every_command_of_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    prepare(text, ARRAYS[page])
    lines = "".join(blocks(text, "console")).splitlines()

    for line in lines:
        _, program, *words = shlex.split(line)
        assert program == "xaihub"
        settings = ["-p", "rise.masks=20"] if "rise" in words else []
        done = CliRunner().invoke(cli, [*words, *settings], prog_name="xaihub")
        assert done.exit_code == 0, f"{line}\n{done.output}"
    assert len(lines) >= 2
    for code in blocks(text, "python"):
        if "import xaihub" in code:
            names: dict[str, Any] = {}
            exec(compile(code, page, "exec"), names)  # noqa: S102 - of our own pages
            assert float(names["shares"].sum()) == pytest.approx(1)
            assert names["shares"].shape == (12,)
