"""Mutated image files: nothing but `InputError` escapes, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzing.driver import Format, fuzz
from tests.fuzzing.formats.images import FORMATS

MANY = """
import sys
from pathlib import Path
from tests.fuzzing.driver import fuzz
from tests.fuzzing.formats.images import FORMATS
def peak():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
before = peak()  # of the libraries
(format_,) = [one for one in FORMATS if one.name == sys.argv[1]]
tally = fuzz(format_, Path(sys.argv[2]), count=2500, seed=1)
assert tally.inputs == 2500 and not tally.escaped, tally
assert min(tally.accepted, tally.refused) > 250, tally
print(peak() - before)
"""


@pytest.mark.parametrize("format_", FORMATS, ids=lambda one: one.name)
def test_a_mutated_image_is_read_or_refused_in_one_line(format_: Format, tmp_path: Path) -> None:
    tally = fuzz(format_, tmp_path, seconds=0.8)
    assert not tally.escaped
    assert min(tally.accepted, tally.refused) > 0


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS, ids=lambda one: one.name)
def test_thousands_of_mutated_images_take_little_memory(format_: Format, tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", MANY, format_.name, str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 6e5  # kB
