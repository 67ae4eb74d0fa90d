"""From the README to a photo, a network and a method of one's own: few commands, each run as it stands there."""

from __future__ import annotations

import re
import shutil

import pytest
import skimage

from tests.third_party.conftest import ROOT, Fresh

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Those that explain are the last for a photo, for a network and for a method of one's own.
COMMANDS = [
    "git clone",
    "pip install .",
    *re.findall(r"^(xaihub .+?)(?: +#.*)?$", README.split("```sh")[2], re.MULTILINE),
]


def test_it_takes_three_five_and_eight_commands_at_most() -> None:
    ends = [number + 1 for number, command in enumerate(COMMANDS) if command.startswith("xaihub explain")]
    assert all(end <= most for end, most in zip(ends, (3, 5, 8), strict=True))


@pytest.mark.slow
def test_each_command_works(fresh: Fresh) -> None:
    shutil.copy(f"{skimage.__path__[0]}/data/chelsea.png", fresh.work / "photo.jpg")
    page = (ROOT / "docs" / "tutorial" / "your-own-model.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    (fresh.work / "my_model.py").write_text(code, encoding="utf-8")
    for command in COMMANDS[2:]:
        done = fresh.run("sh", "-c", command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert "celldrop: " in done.stdout
