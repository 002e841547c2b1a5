"""Run a program with a limit that holds, whatever the program does.

Output goes to memory, not to a pipe: a child that can't be killed (a hung driver) would keep a
pipe open, and whoever waits for its end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO

LARGEST_OUTPUT = 8 << 20  # bytes of each stream that are kept


@dataclass(frozen=True)
class Completed:
    """How a command ended. `rc`: its exit status; negative: the signal that killed it."""

    rc: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.rc == 0


class OutOfTime(Exception):
    """The program was killed at its limit. `done`: what it had written."""

    def __init__(self, done: Completed) -> None:
        super().__init__()
        self.done = done


def run_program(
    arguments: Sequence[str],
    *,
    input: str | bytes | BinaryIO | None = None,
    timeout: float,
) -> Completed:
    """Run to the end, or kill it with its children after `timeout` seconds.

    Raises: OutOfTime; OSError when it can't be started.
    """
    with scratch() as out, scratch() as err, _as_file(input) as source:
        process = subprocess.Popen(  # noqa: S603 (no shell; the callers give lists)
            list(arguments),
            stdin=source,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.returncode is None:
                end_group(process)
        code = process.returncode
        done = Completed(-signal.SIGKILL if code is None else code, _text(out), _text(err))
    if late:
        raise OutOfTime(done)
    return done


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, and its children; don't wait for the unkillable."""
    for number in (signal.SIGTERM, signal.SIGKILL):  # the second for children that ignore it
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)


def scratch() -> IO[bytes]:
    """A file that is gone when it is closed; in memory where the system can, for full disks."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            return os.fdopen(os.memfd_create("maestrale"), "w+b")
    return tempfile.TemporaryFile()


def _as_file(source: str | bytes | BinaryIO | None) -> contextlib.AbstractContextManager[IO[bytes]]:
    if source is None:
        return open(os.devnull, "rb")
    if not isinstance(source, str | bytes):
        with contextlib.suppress(OSError):  # one in memory has no descriptor
            source.fileno()
            return contextlib.nullcontext(source)
    file = scratch()
    if isinstance(source, str | bytes):
        file.write(source.encode() if isinstance(source, str) else source)
    else:
        shutil.copyfileobj(source, file)
    file.seek(0)
    return file


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(LARGEST_OUTPUT).decode("utf-8", "replace")
