"""A program in a real pseudo-terminal: type, press keys, wait for what shows."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Colours, cursor movements, modes: what a terminal swallows.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


class PseudoTerminal:
    """What a user at a terminal can do with a running program."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process = process
        self._terminal = terminal
        self._raw = bytearray()
        self._seen = 0

    @property
    def raw(self) -> bytes:
        """All that has shown, as it was written."""
        return bytes(self._raw)

    @property
    def screen(self) -> str:
        """All that has shown, without the escape sequences."""
        return ESCAPES.sub("", self._raw.decode(errors="replace"))

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def enter(self, line: str) -> None:
        self.type(f"{line}\r")

    def control(self, letter: str) -> None:
        """Press Ctrl and a letter."""
        self.type(chr(ord(letter.upper()) - 64))

    def settle(self) -> None:
        """Wait till the program waits, as people do. Between writing its prompt and reading, the
        terminal still echoes, and readline notes a signal at the next key only.
        """
        asleep = 0
        while asleep < 5 and self.process.poll() is None:
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.02)

    def wait_for(self, pattern: str, timeout: float = 60.0) -> str:
        """Wait until what is new on the screen matches; what follows counts as new.

        Raises: AssertionError with the screen.
        """
        deadline = time.monotonic() + timeout
        while (found := re.search(pattern, self.screen[self._seen :])) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} on:\n{self.screen}"
            self._read(0.2)
        self._seen += found.end()
        return found[0]

    def wait_for_end(self, timeout: float = 30.0) -> int:
        """The program's exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on:\n{self.screen}"
            self._read(0.1)
        return self.process.returncode

    def _read(self, seconds: float) -> None:
        if select.select([self._terminal], [], [], seconds)[0]:
            with contextlib.suppress(OSError):  # the program has closed its side
                self._raw += os.read(self._terminal, 65536)


@contextlib.contextmanager
def in_terminal(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[PseudoTerminal]:
    """Run it with the terminal as its stdin, stdout, stderr and controlling terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm", "COLUMNS": "80"},
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(theirs)
    try:
        yield PseudoTerminal(process, ours)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(30)
        os.close(ours)


def _take_terminal() -> None:
    """Make stdin the controlling terminal, so that Ctrl-C is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
