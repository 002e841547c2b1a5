"""A real OpenSSH server on loopback, with keys of its own, that leaves nothing behind.

As root it runs in a mount namespace of its own, where /etc/passwd has three more users: visitor
(a shell, no sudo), locked (no shell) and odd (a login script that talks). Else it serves the user
who runs the tests.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maestrale.machine.target import Target
from serving import free_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
AVAILABLE = SSHD is not None and shutil.which("ssh") is not None
AS_ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class SshServer:
    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def user(self) -> str:
        return pwd.getpwuid(os.geteuid()).pw_name

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def options(self, *, known_hosts: Path | None = None) -> tuple[str, ...]:
        """Keeps this machine's own keys, agent, known hosts and configuration out."""
        return (
            f"UserKnownHostsFile={known_hosts or self.known_hosts}",
            "GlobalKnownHostsFile=/dev/null",
            "IdentityAgent=none",
        )

    def target(self, user: str = "", *, key: Path | None = None) -> Target:
        return Target.parse(
            f"{user or self.user}@127.0.0.1:{self.port}",
            identity=key or self.key,
            options=self.options(),
        )


def _keygen(path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True
    )


@contextlib.contextmanager
def ssh_server() -> Iterator[SshServer]:
    assert SSHD is not None
    folder = Path(tempfile.mkdtemp(prefix="sshd-"))
    port = free_port()
    for name in ("host", "key", "stranger"):
        _keygen(folder / name)
    folder.chmod(0o755)  # the other users read authorized_keys
    authorized = folder / "authorized_keys"
    authorized.write_text((folder / "key.pub").read_text())
    authorized.chmod(0o644)
    host = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
        f"AuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\nPidFile none\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        "LogLevel VERBOSE\n"
    )
    command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    if AS_ROOT:
        command = ["unshare", "--mount", "sh", "-c", _with_users(folder, command)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(process, folder / "log")
        yield SshServer(folder, port, process)
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def _with_users(folder: Path, command: list[str]) -> str:
    """A script that starts sshd where there are more users, and a /run/sshd."""
    homes = folder / "homes"
    rows = []
    for uid, name, shell in (
        (61001, "visitor", "/bin/sh"),
        (61002, "locked", "/usr/sbin/nologin"),
        (61003, "odd", "/bin/bash"),
    ):
        home = homes / name
        home.mkdir(parents=True)
        (home / ".bashrc").write_text("echo 'Welcome! Today is a good day.'\n")
        os.chown(home, uid, uid)
        rows.append(f"{name}:*:{uid}:{uid}::{home}:{shell}\n")
    passwd = folder / "passwd"
    passwd.write_text(Path("/etc/passwd").read_text() + "".join(rows))
    passwd.chmod(0o644)
    return (
        f"mount --bind {passwd} /etc/passwd && mkdir -p /run/sshd 2>/dev/null; "
        f"exec {' '.join(command)}"
    )


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        if "Server listening" in log.read_text(errors="replace"):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"sshd did not start:\n{log.read_text(errors='replace')}")
