"""What is freed is kept for the next step."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from xaihub.training.memory import keep_freed_memory

def faults():
    for _ in range(8):
        torch.ones(2**24)  # 64 MB, the first times
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
assert keep_freed_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told")
def test_large_blocks_are_not_faulted_in_again() -> None:
    found = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True).stdout
    as_is, kept = map(int, found.split())

    assert kept < as_is / 20
