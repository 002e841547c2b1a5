"""`maestrale serve` on a port of its own, as often as it is killed, and every process of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

MARK = "BENCHMARK_MARK"
ROLES = {
    "maestrale.supervise.worker": "engine",
    "maestrale.serve.workers.worker": "API worker",
    "maestrale.supervise.vet_worker": "vetting",
}


class Served:
    """A server that keeps what it keeps, its log and its temporary files in `folder`."""

    def __init__(self, folder: Path, *flags: str) -> None:
        """`flags`: of `serve`, with the models."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.log = folder / "server.log"
        self.temporary = folder / "tmp"
        self._flags = flags
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started: the API process, or the parent of its workers."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it. Raises: RuntimeError when it ends, or isn't there in two minutes."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        own = {"XDG_STATE_HOME": str(self.folder), "TMPDIR": str(self.temporary), MARK: self._mark}
        command = [sys.executable, "-m", "maestrale", "serve", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._flags],
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        ends = time.monotonic() + 120
        while time.monotonic() < ends and self._process.poll() is None:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"The server did not start:\n{self.log.read_text()[-3000:]}")

    def processes(self) -> dict[int, str]:
        """Every process of it that lives, also without its parent, and what each is."""
        found = {}
        mark = f"{MARK}={self._mark}".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    role = next((ROLES[word] for word in words if word in ROLES), "server")
                    if words != [""]:  # it has ended, and nobody was told
                        found[int(entry.name)] = role
        return found

    def kill(self) -> None:
        """SIGKILL to all of its processes at once."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def kill_first(self, patience: float = 10.0) -> list[str]:
        """SIGKILL to the process that was started: what of the others is there after so long,
        which is ended then.
        """
        os.kill(self.pid, signal.SIGKILL)
        return self._left(patience)

    def stop(self) -> tuple[int, list[str]]:
        """SIGTERM: the exit code, and which processes were left behind."""
        if self._process is None:
            return 0, []
        if self._process.poll() is None:
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        left = self._left(5.0)
        return self._process.wait(), left

    def _left(self, patience: float) -> list[str]:
        ends = time.monotonic() + patience
        assert self._process is not None
        while (self._process.poll() is None or self.processes()) and time.monotonic() < ends:
            time.sleep(0.05)
        left = [f"{role} {pid}" for pid, role in self.processes().items()]
        self.kill()
        return left


def resident(pid: int) -> int:
    """Bytes of memory of a process; 0 when it is gone."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found.group(1)) * 1024 if found else 0
    return 0


def handles(pid: int) -> int:
    """Open files of a process; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far; 0 when it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
