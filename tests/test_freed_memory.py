"""Freed memory, in a process of its own."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import os
from raysearch.freed_memory import return_freed

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before = resident()
# The first piece is the system's in any case, and teaches glibc to take the next from its heap.
for _ in range(2):
    piece = b"x" * (20 << 20)
    end = b"y" * (64 << 10)
    del piece
print(resident() - before)
return_freed()
print(resident() - before)
"""


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_between_pieces_in_use_goes_back():
    answer = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True)
    kept, left = map(int, answer.stdout.split())
    assert kept > 15 << 20
    assert left < 5 << 20
