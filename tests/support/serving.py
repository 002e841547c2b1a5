"""Starts the real `maestrale serve` in a process of its own, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "SERVING_TEST_MARK"


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of maestrale, with the sources on the path."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MAESTRALE_")}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """A running server. `url` has no slash at its end and no `/v1`."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path
    mark: str
    tls: ssl.SSLContext | None = None

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def pids(self) -> list[int]:
        """Every process of this server that lives: the API, the engine, what they started."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                marked = f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                if marked and "\nState:\tZ" not in (entry / "status").read_text():
                    found.append(int(entry.name))
        return found

    def resident_bytes(self) -> int:
        """Resident memory of all its processes together, shared pages counted once (PSS)."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total

    def wait_until_healthy(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"server exited with {self.process.returncode}:\n{self.log()}")
            with (
                contextlib.suppress(OSError),  # not listening yet, or an answer of 4xx or 5xx
                urllib.request.urlopen(f"{self.url}/health", timeout=5, context=self.tls) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"server not healthy after {timeout} s:\n{self.log()}")

    def wait_until_announced(self, timeout: float = 5.0) -> None:
        """Each of several API workers answers: one may say sooner that it is healthy. A server that
        announces nothing is taken as it is.
        """
        deadline = time.monotonic() + timeout
        while "maestrale serves " not in self.log() and time.monotonic() < deadline:
            time.sleep(0.02)

    def stop(self, timeout: float = 60.0) -> None:
        """SIGTERM, then check that every process is gone. Raises: RuntimeError when not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"server did not stop within {timeout} s:\n{self.log()}") from error
        finally:
            left = self._await_gone(5.0)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if left:
            raise RuntimeError(f"server left processes behind: {left}\n{self.log()}")

    def _await_gone(self, timeout: float) -> list[int]:
        deadline = time.monotonic() + timeout
        while (left := self.pids()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


def lend_kernel(cache_dir: Path) -> None:
    """Copy the CPU engine's kernel from the cache of all tests to one of a test's own: compiling it
    takes most of a minute.
    """
    # Not above: a server of another environment is started without ours.
    from maestrale.config.paths import default_cache_dir
    from maestrale.engines.cpu.kernel.build import KEPT, name

    own = cache_dir / KEPT / name()
    shared = default_cache_dir().with_name("maestrale-tests")
    compiled = next(shared.glob(f"*/{KEPT}/{own.name}"), None)
    if compiled is not None and not own.exists():
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(compiled, own)


@contextlib.contextmanager
def serving(
    *flags: str,
    cache_dir: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    environment: Mapping[str, str] | None = None,
    timeout: float = 180.0,
    tls: ssl.SSLContext | None = None,
    module: str = "maestrale",
    within: Sequence[str] = (),
    python: str = sys.executable,
) -> Iterator[Server]:
    """Serve with these flags on `port` (0: a free one) until the block ends.

    `tls` is what a client trusts, when the flags say to serve over TLS. `module` is run in the
    place of `maestrale`; one of the tests' needs their folder in
    PYTHONPATH. `within` is a command that runs another one. `python` has what a server needs.
    """
    if python == sys.executable:
        lend_kernel(cache_dir)
    port, mark = port or free_port(), uuid.uuid4().hex
    command = [*within, python, "-m", module, "serve", "--host", host, "--port", str(port)]
    command += ["--cache-dir", str(cache_dir), *flags]
    with tempfile.TemporaryDirectory(prefix="maestrale-test-") as folder:
        log_file = Path(folder) / "server.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                # With its own home for settings: the developer's keys are not the test's.
                env=clean_environment(
                    **{
                        "XDG_CONFIG_HOME": folder,
                        "XDG_STATE_HOME": folder,
                        **(environment or {}),
                        MARK: mark,
                    }
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        scheme = "https" if tls else "http"
        server = Server(f"{scheme}://127.0.0.1:{port}", process, log_file, mark, tls)
        try:
            server.wait_until_healthy(timeout)
            server.wait_until_announced()
            yield server
        finally:
            server.stop()
