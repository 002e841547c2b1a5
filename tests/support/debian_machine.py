"""A Debian 12 to set up: an overlay over a system made by debootstrap, entered by chroot or SSH.

Its /sys is a folder of ours, so a test says which GPU there is. Nothing of it stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from docker_engine import CACHE, debian
from maestrale.machine.processes import Completed, run_program
from maestrale.machine.target import Target

GPU_FOLDER = "sys/bus/pci/devices/0000:00:05.0"
A5000 = "0x2231"
# Beside the base: an SSH server, what fetches and reads keys, what reads user-data, and what a
# first boot installs.
EXTRAS = (
    *("ca-certificates", "cloud-init", "curl", "gnupg", "openssh-server"),
    *("git", "python3-venv"),
)


def base() -> Path:
    """The unpacked system with the extras; made once, then kept. Skips where that can't be."""
    archive = debian()
    name = hashlib.sha256(" ".join(EXTRAS).encode()).hexdigest()[:8]
    tree = CACHE / f"{archive.stem}-setup-{name}"
    with (CACHE / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if tree.is_dir() and tree.stat().st_mtime >= archive.stat().st_mtime:
            return tree
        part = CACHE / "setup.part"
        for old in (part, tree):
            shutil.rmtree(old, ignore_errors=True)
        part.mkdir()
        subprocess.run(["tar", "-C", part, "-xf", archive], check=True, timeout=120)
        (part / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (part / "usr/sbin/policy-rc.d").chmod(0o755)
        shutil.copy("/etc/resolv.conf", part / "etc/resolv.conf")
        script = (
            "export DEBIAN_FRONTEND=noninteractive; apt-get -q update && "
            f"apt-get -q -y install --no-install-recommends {' '.join(EXTRAS)} && apt-get clean"
        )
        done = subprocess.run(["chroot", part, "sh", "-c", script], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"Debian's mirror can't be reached: {done.stderr[-500:]}")
        for leftover in (part / "var/lib/apt/lists").iterdir():
            if leftover.is_file():
                leftover.unlink()
        part.touch()
        part.rename(tree)
    return tree


@dataclass
class ChrootTarget(Target):
    """A machine that is entered by chroot."""

    root: Path = Path("/nowhere")

    @property
    def name(self) -> str:
        return "the test machine"

    def run(
        self,
        script: str,
        *,
        input: str | bytes | BinaryIO | None = None,
        timeout: float = 60.0,
        as_root: bool = False,
    ) -> Completed:
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
        command = [*clean, "chroot", str(self.root), "sh", "-c", script]
        return run_program(command, input="" if input is None else input, timeout=timeout)


@dataclass
class DebianMachine:
    """`root`: its file system, as seen from here."""

    root: Path

    @property
    def target(self) -> ChrootTarget:
        return ChrootTarget(root=self.root)

    def run(self, script: str, *, timeout: float = 120.0) -> str:
        """What it prints. Raises: AssertionError when it fails."""
        done = self.target.run(script, timeout=timeout)
        assert done.ok, done
        return done.stdout

    def installed(self) -> dict[str, str]:
        """Every package that is installed whole, with its version."""
        lines = self.run("dpkg-query -W -f '${db:Status-Abbrev}|${Package}|${Version}\\n'")
        rows = (line.split("|") for line in lines.splitlines())
        return {name: version for status, name, version in rows if status.strip() == "ii"}

    def put_gpu(self, device: str = A5000) -> None:
        """Have it see an NVIDIA GPU of this PCI id."""
        folder = self.root / GPU_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {"vendor": "0x10de", "device": device, "class": "0x030200"}.items():
            (folder / name).write_text(f"{text}\n")

    def only_source(self, url: str, key: str) -> None:
        """Take every other repository away: this one has all the packages."""
        (self.root / "etc/apt/sources.list").unlink(missing_ok=True)
        for file in (self.root / "etc/apt/sources.list.d").iterdir():
            file.unlink()
        (self.root / "etc/apt/keyrings/distribution.asc").write_text(key)
        source = f"deb [signed-by=/etc/apt/keyrings/distribution.asc] {url} /\n"
        (self.root / "etc/apt/sources.list").write_text(source)

    def everything(self) -> dict[str, tuple[int, int]]:
        """Files of settings and programs → size and time of change: to see that nothing changed."""
        found = {}
        for folder in ("etc", "usr", "var/lib/dpkg/info"):
            for path in (self.root / folder).rglob("*"):
                status = path.lstat()
                found[str(path)] = (status.st_size, status.st_mtime_ns)
        return found


@contextlib.contextmanager
def debian_machine(*, size: str = "") -> Iterator[DebianMachine]:
    """`size`: that of its disk, such as 64m; default: this machine's."""
    tree = base()
    with tempfile.TemporaryDirectory(prefix="maestrale-machine-") as place:
        folder = Path(place)
        mounts: list[Path] = []

        def mount(*arguments: str, at: Path) -> None:
            at.mkdir(exist_ok=True)
            done = subprocess.run(
                ["mount", *arguments, str(at)], capture_output=True, text=True, timeout=30
            )
            if done.returncode != 0:
                pytest.skip(f"no overlay can be mounted here: {done.stderr}")
            mounts.append(at)

        try:
            if size:
                mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", at=folder / "disk")
            disk = folder / "disk"
            for name in ("upper", "work"):
                (disk / name).mkdir(parents=True)
            layers = f"lowerdir={tree},upperdir={disk}/upper,workdir={disk}/work"
            root = folder / "root"
            mount("-t", "overlay", "-o", layers, "overlay", at=root)
            mount("-t", "proc", "proc", at=root / "proc")
            (root / "lib/modules" / platform.release() / "build").mkdir(parents=True)
            machine = DebianMachine(root)
            machine.run("mkdir -p /etc/apt/keyrings /run/sshd")
            yield machine
        finally:
            for at in reversed(mounts):
                subprocess.run(["umount", "--lazy", at], check=True, timeout=30)


@contextlib.contextmanager
def ssh_server(machine: DebianMachine, folder: Path, port: int) -> Iterator[Path]:
    """An SSH server in the machine, on loopback. Gives the private key that it takes."""
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    shutil.copy(folder / "host", machine.root / "etc/ssh/test_host_key")
    (machine.root / "etc/ssh/test_host_key").chmod(0o600)
    home = machine.root / "root/.ssh"
    home.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(folder / "user.pub", home / "authorized_keys")
    options = "-o ListenAddress=127.0.0.1 -o PermitRootLogin=yes -o UsePAM=no -o StrictModes=no"
    script = f"exec /usr/sbin/sshd -D -e -p {port} -h /etc/ssh/test_host_key {options}"
    process = subprocess.Popen(
        ["chroot", str(machine.root), "sh", "-c", script],
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        start_new_session=True,
    )
    try:
        yield folder / "user"
    finally:
        process.terminate()
        process.wait(10)


def shell_words(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)


def is_root() -> bool:
    return os.geteuid() == 0
