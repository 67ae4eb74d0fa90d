"""Freed memory is kept for the next step."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from xaihub.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(8):
    b"x" * 2**25  # 32 MB, the first times
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    b"x" * 2**25
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt belongs to the GNU C library")
def test_large_blocks_are_not_faulted_in_again() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", FAULTS, way], check=True, capture_output=True).stdout)
        for way in ("keep", "as-is")
    }
    assert faults["keep"] < faults["as-is"] / 20
