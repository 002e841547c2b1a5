"""A child ends with its parent, also where the parent was gone before it asked."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can do it")

CHILD = "from maestrale.processes import die_with_parent; import time; die_with_parent({}); "
CHILD += "print('on', flush=True); time.sleep(60)"


def test_it_ends_with_its_parent() -> None:
    parent = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {CHILD.format('')!r}],"
        " stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    told = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, timeout=60)
    stat = Path(f"/proc/{int(told.stdout)}/stat")
    deadline = time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_ends_at_once_without_the_parent_that_it_should_have() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format("2**22 + 1")], stdout=subprocess.PIPE, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, b"")
