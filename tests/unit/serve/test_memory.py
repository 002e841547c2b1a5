"""What a flood of large buffers leaves behind, measured in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MEASURE = """
import sys
from maestrale.serve.memory import return_large_buffers

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "returning":
    return_large_buffers()
before = resident()
one = bytes(30_000_000)  # when it is freed, glibc raises its threshold to this size
del one
large, small = [], []
for _ in range(100):
    large.append(b"x" * 1_000_000)
    small.append(b"y" * 50_000)  # what lies between the large ones pins the heap
del large
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and glibc")
def test_large_buffers_are_given_back() -> None:
    grown = {}
    for how in ("returning", "not"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, how], capture_output=True, text=True, check=True
        )
        grown[how] = int(done.stdout)
    assert grown["returning"] < 16 << 20
    if platform.libc_ver()[0] == "glibc":
        assert grown["not"] > 40 << 20, "then it isn't needed any more"


SCATTERED = """
import sys
from maestrale.serve.memory import return_free_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

class Circle:
    pass

before = resident()
kept, circle = [], Circle()
circle.itself, circle.gone = circle, []
for _ in range(20_000):
    circle.gone.append(b"x" * 4_000)
    kept.append(b"y" * 600)  # what lies between pins the heap
del circle
if sys.argv[1] == "returning":
    return_free_memory()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc")
def test_what_is_free_between_what_is_kept_is_given_back() -> None:
    grown = {}
    for how in ("returning", "not"):
        done = subprocess.run(
            [sys.executable, "-c", SCATTERED, how], capture_output=True, text=True, check=True
        )
        grown[how] = int(done.stdout)
    assert grown["returning"] < grown["not"] / 2
