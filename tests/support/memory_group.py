"""A cgroup with a limit of memory, v1 or v2: what runs in it has no more, page cache included."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[tuple[str, ...]]:
    """Gives the command that runs another one within `limit` bytes. Skips where that can't be."""
    folder = _made(limit)
    try:
        yield ("/bin/sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "in-group")
    finally:
        _remove(folder)


def _made(limit: int) -> Path:
    old = (V1 / "memory.limit_in_bytes").is_file()
    folder = (V1 if old else V2) / f"maestrale-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error.strerror}")
    try:
        if old:
            (folder / "memory.limit_in_bytes").write_text(str(limit))
        else:
            (folder / "memory.max").write_text(str(limit))
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        _remove(folder)
        pytest.skip(f"a cgroup's memory can't be limited here: {error.strerror}")
    return folder


def _remove(folder: Path) -> None:
    """Once the last process is out of it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
            return
        time.sleep(0.1)
