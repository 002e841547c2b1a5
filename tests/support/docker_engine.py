"""A Docker engine of the tests' own, and Debian made by debootstrap: no registry is needed.

The engine keeps all it has in a folder that goes with it, touches no iptables rule, and has a
bridge of its own, so it stands beside whatever Docker the machine runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
CACHE = Path("~/.cache/maestrale-tests-debian").expanduser()
START_SECONDS = 60.0
# /usr/bin first: Debian's client fits Debian's engine; another may lack the builder's plugin.
PATHS = f"/usr/bin:/usr/sbin:{os.environ.get('PATH', '')}"


def missing() -> str:
    """Why there can be no engine here; empty where there can."""
    if os.geteuid() != 0:
        return "only root can start a Docker engine"
    for program in ("dockerd", "docker", "containerd", "ip"):
        if not shutil.which(program, path=PATHS):
            return f"{program} is not installed (scripts/test does it, as root on Debian)"
    return ""


def debian(include: Sequence[str] = ()) -> Path:
    """A tar of a fresh Debian with the least of packages, and `include`; made once, then kept."""
    if os.geteuid() != 0 or not shutil.which("debootstrap", path=PATHS):
        pytest.skip("debootstrap is not installed, or this is not root")
    name = hashlib.sha256("\n".join([SUITE, *sorted(include)]).encode()).hexdigest()[:12]
    CACHE.mkdir(parents=True, exist_ok=True)
    archive = CACHE / f"{SUITE}-{name}.tar"
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            with tempfile.TemporaryDirectory(prefix="maestrale-debootstrap-") as folder:
                _debootstrap(Path(folder) / "root", include, archive)
    return archive


def _debootstrap(root: Path, include: Sequence[str], archive: Path) -> None:
    command = ["debootstrap", "--variant=minbase"]
    if include:
        command.append("--include=" + ",".join(include))
    done = subprocess.run(
        [*command, SUITE, str(root), MIRROR], capture_output=True, text=True, timeout=600
    )
    if done.returncode != 0:
        pytest.skip(f"debootstrap can't reach {MIRROR}: {done.stdout[-500:]}")
    for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
        for path in (root / leftover).iterdir():
            if path.is_file():
                path.unlink()
    # What the public image has besides: security fixes and updates.
    (root / "etc/apt/sources.list").write_text(
        f"deb {MIRROR} {SUITE} main\n"
        f"deb {MIRROR}-security {SUITE}-security main\n"
        f"deb {MIRROR} {SUITE}-updates main\n"
    )
    draft = archive.with_suffix(".part")
    subprocess.run(["tar", "-C", str(root), "-cf", str(draft), "."], check=True, timeout=120)
    draft.rename(archive)


@dataclass
class Engine:
    """A running engine. `docker(...)` is its client; `bridge` its network, reached from here."""

    socket: Path
    log: Path
    bridge: str

    def environment(self) -> dict[str, str]:
        """For whoever calls docker. Debian's client knows BuildKit, but has to be told."""
        own = {"DOCKER_HOST": f"unix://{self.socket}", "PATH": PATHS, "DOCKER_BUILDKIT": "1"}
        return {**os.environ, **own}

    def start(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """The client, whatever comes of it."""
        options = {"timeout": 300, **options}
        return subprocess.run(
            ["docker", *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            errors="replace",
            **options,
        )

    def docker(self, *arguments: str, **options: Any) -> str:
        """What the client prints. Raises: RuntimeError with what it complains of."""
        done = self.start(*arguments, **options)
        if done.returncode != 0:
            raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr}{done.stdout[-3000:]}")
        return done.stdout.strip()

    def import_base(self, name: str, archive: Path) -> None:
        """Give an image made by debootstrap the name that a Dockerfile begins FROM."""
        self.docker("import", str(archive), name)


@contextlib.contextmanager
def docker_engine() -> Iterator[Engine]:
    """Start an engine; at the end its containers, networks, mounts and files are gone."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="maestrale-docker-"))
    bridge = f"mst{os.getpid() % 100000}"
    address = f"10.{random.randint(200, 250)}.{random.randint(0, 250)}.1/24"
    made = subprocess.run(
        ["ip", "link", "add", bridge, "type", "bridge"], capture_output=True, text=True
    )
    network = made.returncode == 0
    if network:
        subprocess.run(["ip", "address", "add", address, "dev", bridge], check=True)
        subprocess.run(["ip", "link", "set", bridge, "up"], check=True)
    engine = Engine(folder / "socket", folder / "log", bridge if network else "")
    command = ["dockerd", "--host", f"unix://{engine.socket}", "--data-root", f"{folder}/data"]
    command += ["--exec-root", f"{folder}/run", "--pidfile", f"{folder}/pid"]
    command += ["--iptables=false", "--ip6tables=false", "--bridge", bridge if network else "none"]
    command += ["--shutdown-timeout", "5"]
    with engine.log.open("wb") as log:
        process = subprocess.Popen(
            command,
            env=engine.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _await(engine, process)
        yield engine
    finally:
        _stop(engine, process)
        if network:
            subprocess.run(["ip", "link", "delete", bridge], capture_output=True)
        _unmount(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _await(engine: Engine, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while engine.start("version").returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            end = engine.log.read_text(errors="replace")[-1500:]
            pytest.skip(f"no Docker engine can be started here:\n{end}")
        time.sleep(0.2)


def _stop(engine: Engine, process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(Exception):
        running = engine.docker("ps", "--quiet").split()
        if running:
            engine.docker("kill", *running)
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        # Its containerd too, which is in its session.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _unmount(folder: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], capture_output=True)
