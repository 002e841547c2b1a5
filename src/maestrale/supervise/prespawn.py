"""The engine's process, begun before there is anything to tell it.

Half of a start is imports: the engine's and those of HTTP. Begun first thing, both run side by
side. What comes of it is the process that `Child` would have started later; if another one is
needed after all, or none, it is ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WORKER = "maestrale.supervise.worker"


@dataclass
class Begun:
    """A process of ours, and our end of the socket to it."""

    popen: subprocess.Popen[bytes]
    ours: socket.socket

    def end(self) -> None:
        """End it, and leave nothing of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.ours.close()
        self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()


_engines: dict[str, Begun] = {}


@contextlib.contextmanager
def begun_engine(engine: str | None) -> Iterator[None]:
    """Begin a process for the engine of this name; None: don't. Ended at the exit, if untaken."""
    if engine is not None:
        # No room for a process: who needs it tries again, and tells it.
        with contextlib.suppress(OSError):
            _engines[engine] = begin(WORKER, ["--engine", engine])
    try:
        yield
    finally:
        _end_all()


def take_engine(engine: str) -> Begun | None:
    """The process that was begun for this engine, once; one for another engine is ended."""
    begun = _engines.pop(engine, None)
    _end_all()
    return begun


def begin(
    module: str,
    arguments: Sequence[str] = (),
    *,
    pass_fds: Sequence[int] = (),
    own_output: bool = False,
) -> Begun:
    """Start `python -m MODULE --fd N ARGUMENTS` in a session of its own. Raises: OSError."""
    with contextlib.ExitStack() as unless_started:
        ours, theirs = socket.socketpair()
        unless_started.enter_context(ours)
        with theirs:
            fd = theirs.fileno()
            popen = subprocess.Popen(  # noqa: S603 - no input of anybody's
                # -P: what lies in the current folder is never imported
                [sys.executable, "-P", "-m", module, "--fd", str(fd), *arguments],
                pass_fds=[fd, *pass_fds],
                stdin=subprocess.DEVNULL,
                stdout=None if own_output else subprocess.PIPE,
                stderr=None if own_output else subprocess.STDOUT,
                start_new_session=True,
            )
        unless_started.pop_all()
    return Begun(popen, ours)


def _end_all() -> None:
    while _engines:
        _engines.popitem()[1].end()
