"""A child ends with its parent; folders of processes that ended are removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maestrale.processes import is_alive, private_folder

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


def test_a_private_folder_takes_the_place_of_those_of_the_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    dead = tmp_path / f"maestrale-x-{process.pid}-a"
    others = {tmp_path / "maestrale-x-y", tmp_path / f"maestrale-z-{process.pid}-a"}
    for folder in (dead, *others):
        folder.mkdir()
    first = private_folder("maestrale-x", tmp_path)
    second = private_folder("maestrale-x", tmp_path)
    assert set(tmp_path.iterdir()) == {first, second, *others}
    assert first.stat().st_mode & 0o777 == 0o700
    assert first.name.startswith(f"maestrale-x-{os.getpid()}-")


def test_processes_are_alive_until_they_have_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert is_alive(process.pid)
    assert not is_alive(process.pid)
    assert is_alive(1)
