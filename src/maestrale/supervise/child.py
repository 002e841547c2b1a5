"""A child process of ours: started, listened to, killed and reaped. It leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from maestrale.errors import EngineError
from maestrale.supervise.channel import Channel
from maestrale.supervise.prespawn import Begun, begin

LINES_KEPT = 20
REAP_SECONDS = 10.0

_TERMINAL_CODES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Child:
    """`python -m MODULE --fd N`, in a session of its own, with a private socket to it.

    In a session of its own a Ctrl-C in the terminal doesn't reach it. What it prints goes to
    the log, line by line; the last lines are kept for the error message.
    """

    def __init__(
        self,
        module: str,
        kind: Any,
        on_message: Callable[[Any], None],
        log: logging.Logger,
        *,
        pass_fds: Sequence[int] = (),
        own_output: bool = False,
        begun: Begun | None = None,
    ) -> None:
        """`kind`: the union of the messages that it sends. `pass_fds`: what it inherits besides
        its socket. `own_output`: it writes to our terminal or log itself. `begun`: it runs
        already.
        """
        self._begun = begun
        self._pass_fds = pass_fds
        self._own_output = own_output
        self._module = module
        self._log = log
        self._channel = Channel(kind, on_message, self._on_lost)
        self._popen: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._cause = ""
        self._ooms = _oom_kills()
        self.killed_from_outside = False
        """Once it is dead: somebody ended it by SIGKILL, neither we nor the system for memory."""
        self.dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when the process is gone and reaped; a short reason that shows no internals."""

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def last_lines(self) -> str:
        """The last that it printed: for the log and for the person who starts the server."""
        return "\n".join(self._lines)

    async def spawn(self) -> None:
        """Start it. Its death is seen from then on.

        Raises: EngineError when the system has no room for another process.
        """
        try:
            ours = self._spawn()
        except OSError as error:
            raise EngineError(f"The system can't start a process: {error}.") from error
        ours.setblocking(False)
        await self._channel.open(ours)

    def _spawn(self) -> socket.socket:
        begun = self._begun or begin(
            self._module, pass_fds=self._pass_fds, own_output=self._own_output
        )
        self._popen = begun.popen
        if self._popen.stdout is not None:
            self._reader = threading.Thread(
                target=self._read_lines, args=(self._popen.stdout,), daemon=True
            )
            self._reader.start()
        return begun.ours

    def send(self, message: msgspec.Struct) -> None:
        """Raises: EngineError when the message is too long. A dead child hears nothing."""
        self._channel.send(message)

    def kill(self, cause: str = "") -> None:
        """End it now. `cause` becomes the reason given by `dead`."""
        self._cause = self._cause or cause
        if self._popen is not None and self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        self._channel.close()

    def _on_lost(self, fault: str) -> None:
        self._reaper = asyncio.get_running_loop().create_task(self._reap(fault))

    async def _reap(self, fault: str) -> None:
        """End of file means that it is dead or ends at once; what doesn't is killed."""
        popen = self._popen
        assert popen is not None
        by_itself = not fault and await asyncio.to_thread(_await_end, popen.pid, 0.5)
        by_itself = by_itself and not self._cause
        self.kill(fault)  # with it the processes that it started, if any
        try:
            status = await asyncio.to_thread(popen.wait, REAP_SECONDS)
            how = _how_it_ended(status)
            if by_itself and status == -signal.SIGKILL and self._ooms is not None:
                self.killed_from_outside = self._ooms == _oom_kills()
        except subprocess.TimeoutExpired:  # stuck in the kernel: it can do no harm any more
            how = f"process {popen.pid} can't be ended by the system"
        if self._reader is not None:
            await asyncio.to_thread(self._reader.join, 1.0)
        if not self.dead.done():
            self.dead.set_result(self._cause or how)

    def _read_lines(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in iter(lambda: pipe.readline(4096), b""):
                text = _TERMINAL_CODES.sub(b"", line).decode(errors="replace").rstrip()
                if text:
                    self._lines.append(text)
                    self._log.info("%s", text)


def _await_end(pid: int, seconds: float) -> bool:
    """Wait until a child has ended, for `seconds` at most; whether it has. It stays to be reaped:
    until then its number, and so its group's, is given to no other.
    """
    deadline = time.monotonic() + seconds
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, pid, how) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _oom_kills() -> int | None:
    """How many processes the system has ended for want of memory; None where it doesn't tell."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"it exited with status {status}"
    try:
        return f"it was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"it was ended by signal {-status}"
