"""Processes of the peers: started apart, measured with all their children, never left behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Memory:
    """Of a process and all its descendants, in bytes. PSS counts shared pages once."""

    pss: int
    rss: int


class Running:
    """A process group that was started here."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self.started = time.perf_counter()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def last_words(self) -> str:
        """The end of its log, for a report of its failure."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-300:] or "it said nothing"

    def wait_until_healthy(self, port: int, seconds: float) -> None:
        """Until its /health says that it is ready. Raises: RuntimeError."""
        while not _is_healthy(port, seconds):
            if self.ended:
                raise RuntimeError(f"it ended: {self.last_words()}")
            if time.perf_counter() - self.started > seconds:
                raise RuntimeError("it was not ready in time")
            time.sleep(0.01)

    def pause(self) -> None:
        """Take the processor away from it, so that others can be measured."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def memory(self) -> Memory:
        found = Memory(0, 0)
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in ("Pss", "Rss"):
                        size = int(value.split()[0]) * 1024
                        setattr(found, name.lower(), getattr(found, name.lower()) + size)
        return found

    def stop(self, patience: float = 30.0) -> None:
        """End it and all that it started."""
        self.resume()
        pids = descendants(self.process.pid)
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self._signal(signal.SIGKILL)
        for pid in pids[1:]:  # those that made a session of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _signal_all(self, number: int) -> None:
        """Also to those below it that made a group of their own."""
        for pid in descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _is_healthy(port: int, seconds: float) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def descendants(pid: int) -> list[int]:
    """`pid` and every process below it."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = " ".join((task / "children").read_text() for task in tasks).split()
    except OSError:
        return [pid]
    return [pid, *(below for child in children for below in descendants(int(child)))]


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[Running]:
    """Run a command until the block ends."""
    started = Running(command, log, environment)
    try:
        yield started
    finally:
        started.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
