"""A machine to look at or to work on: this one, or one over SSH with the OpenSSH client.

The client, not a library, so that ~/.ssh/config, agents, hardware keys and jump hosts work as
they do by hand. One login serves all commands (ControlMaster, in a private folder).
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from maestrale.errors import (
    MachineError,
    NoSudo,
    SettingsError,
    TargetTimeout,
    TargetUnusable,
)
from maestrale.machine import ssh_errors
from maestrale.machine.processes import Completed, OutOfTime, run_program, scratch
from maestrale.machine.tunnel import CONNECT_SECONDS, tunnel

__all__ = ["Completed", "Target"]

# The client's messages in the words that ssh_errors.py looks for.
_SSH = ("env", "LC_ALL=C", "LANGUAGE=C", "ssh")
_BEGINS = "@@maestrale-begins"  # whatever a login script prints stands before it
_NAME = re.compile(r"[A-Za-z0-9._~%\\+-]+")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")


@dataclass
class Target:
    """`host` is None for this machine. `port` 0: what ~/.ssh/config says, else 22.

    `options` are more `-o` options of ssh. With `accept_new` the key of a host not seen before is
    taken as it is; a changed key never is. Close it, or use it in a `with`.
    """

    host: str | None = None
    user: str = ""
    port: int = 0
    identity: Path | None = None
    accept_new: bool = False
    options: tuple[str, ...] = ()
    _folder: str | None = field(default=None, init=False, repr=False)

    @classmethod
    def parse(
        cls,
        text: str | None,
        *,
        port: int | None = None,
        identity: Path | None = None,
        accept_new: bool = False,
        options: tuple[str, ...] = (),
    ) -> Self:
        """None: this machine. Else `[user@]host[:port]`, `[user@][v6]:port` or ssh://....

        Raises: SettingsError when it is none of these, or the port is given twice.
        """
        if text is None:
            given = {
                "--port": port is not None,
                "--identity": identity is not None,
                "--accept-new-host-key": accept_new,
                "--ssh-option": bool(options),
            }
            if named := [name for name, is_given in given.items() if is_given]:
                verb = "is" if len(named) == 1 else "are"
                raise SettingsError(
                    f"{' and '.join(named)} {verb} for a machine over SSH: name it, as user@host."
                )
            return cls()
        for option in options:
            if not re.fullmatch(r"[A-Za-z]+\s*[= ]\s*\S.*", option):
                raise SettingsError(
                    f"--ssh-option {option!r}: works are ssh's own options as KEY=VALUE, such as "
                    "ProxyJump=user@host."
                )
        rest = text.removeprefix("ssh://").removesuffix("/") if "://" in text else text
        user, at, address = rest.rpartition("@")
        bracketed = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", address)
        plain = re.fullmatch(r"([^:]+):(\d+)", address)
        found = bracketed or plain
        host, its_port = (found[1], found[2]) if found else (address, None)
        sound = _HOST.fullmatch(host) and (_NAME.fullmatch(user) if at else True)
        if not sound or user.startswith("-"):
            raise SettingsError(
                f"{text[:80]!r} names no machine. Works: user@host, user@host:port, or nothing "
                "for this machine."
            )
        if its_port is not None and port is not None and int(its_port) != port:
            raise SettingsError(f"{text!r} names port {its_port}, and --port says {port}.")
        number = int(its_port) if its_port is not None else port or 0
        if not 0 <= number <= 65535 or (its_port is not None and number == 0):
            raise SettingsError(f"{number} is no port: they go from 1 to 65535.")
        if identity is not None and not identity.expanduser().is_file():
            raise SettingsError(f"--identity: there is no file {identity}.")
        key = identity.expanduser().absolute() if identity is not None else None
        return cls(host, user, number, key, accept_new, options)

    @property
    def local(self) -> bool:
        return self.host is None

    @property
    def login(self) -> str:
        """`user@host` as ssh takes it."""
        return f"{self.user}@{self.host}" if self.user else str(self.host)

    @property
    def name(self) -> str:
        """What a person calls it."""
        if self.local:
            return "this machine"
        return f"{self.login}:{self.port}" if self.port else self.login

    def run(
        self,
        script: str,
        *,
        input: str | bytes | BinaryIO | None = None,
        timeout: float = 60.0,
        as_root: bool = False,
    ) -> Completed:
        """Run a POSIX sh script there; `timeout` in seconds. Its own failure is in `rc`.

        `as_root` goes through `sudo -n` for other users. Over SSH a script's exit status 255
        counts as the connection's failure.

        Raises: TargetTimeout, NoSudo; over SSH NoSshClient, TargetUnreachable, HostKeyRefused,
        LoginRefused, TargetUnusable.
        """
        shell = self._root_shell(timeout) if as_root else "sh"
        if self.local:
            words = ["/bin/sh"] if shell == "sh" else shell.split()
            if input is None:
                return self._run([*words, "-s"], _whole(script), timeout)
            return self._run([*words, "-c", script], input, timeout)
        # Without input the script goes in by standard input: any login shell can start `sh`.
        begins = f"echo {_BEGINS}\n"
        command = shell if input is None else f"{shell} -c {shlex.quote(begins + script)}"
        source = _whole(begins + script) if input is None else input
        done = self._run([*self.ssh(), self.login, command], source, timeout)
        if done.rc == ssh_errors.SSH_FAILED:
            raise self._explained(done.stderr)
        _, found, stdout = done.stdout.partition(f"{_BEGINS}\n")
        if not found:
            told = " ".join(f"{done.stderr} {done.stdout}".split())[:200] or "nothing"
            raise TargetUnusable(
                f"The login on {self.name} works, but it gives no POSIX shell (sh). It said: {told}"
            )
        return Completed(done.rc, stdout, done.stderr)

    def copy_to(self, path: Path, remote: str, *, timeout: float = 600.0) -> None:
        """Copy a file, or a folder with all in it, to the path `remote`, replacing files there.

        A file appears whole or not at all. Raises: as `run`; MachineError when it can't be
        written.
        """
        there = shlex.quote(remote)
        with contextlib.ExitStack() as stack:
            if path.is_dir():
                file = stack.enter_context(scratch())
                with tarfile.open(fileobj=file, mode="w") as archive:
                    archive.add(path, arcname=".")
                file.seek(0)
                script = f"mkdir -p {there} && tar -xof - -C {there}"
            else:
                file = stack.enter_context(path.open("rb"))
                mode = f"{path.stat().st_mode & 0o777:o}"
                part = shlex.quote(f"{remote}.part")
                script = (
                    f'mkdir -p "$(dirname {there})" && (umask 077; cat > {part}) && '
                    f"chmod {mode} {part} && mv -f {part} {there} || {{ rm -f {part}; exit 1; }}"
                )
            done = self.run(script, input=cast(BinaryIO, file), timeout=timeout)
        if not done.ok:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise MachineError(f"Can't copy {path.name} to {remote} on {self.name}: {why}.")

    @contextlib.contextmanager
    def forward(self, local_port: int, remote_port: int) -> Iterator[int]:
        """Make the machine's loopback port `remote_port` reachable here; gives the port.

        `local_port` 0: a free one. On this machine nothing is needed: gives `remote_port`.
        Raises: as `run`; MachineError when the port here is taken.
        """
        if self.local:
            yield remote_port
            return
        command = [*self.ssh(shared=False), "-S", "none"]
        with tunnel(command, self.login, local_port, remote_port, self._explained) as port:
            yield port

    def ssh(self, *, shared: bool = True) -> list[str]:
        """The client's command line up to the host; `shared`: over the one connection."""
        words = [*_client(), "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
        words += ["-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"]
        # Whatever ~/.ssh/config says for logins by hand.
        words += ["-o", "LogLevel=ERROR", "-o", "RemoteCommand=none", "-a", "-x"]
        if self.accept_new:
            words += ["-o", "StrictHostKeyChecking=accept-new"]
        if self.port:
            words += ["-p", str(self.port)]
        if self.identity is not None:
            words += ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"]
        for option in self.options:
            words += ["-o", option]
        if shared and (folder := self._control_folder()):
            words += ["-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
            words += ["-o", f"ControlPath={folder}/%C"]
        if shared:
            words += ["-o", "ClearAllForwardings=yes"]
        return words

    def close(self) -> None:
        """End the shared connection. The next command makes a new one: use it after a reboot."""
        if self._folder is None:
            return
        # With the same options: the socket's name is made of what they come to.
        with contextlib.suppress(OSError, OutOfTime, MachineError):
            run_program([*self.ssh(), "-O", "exit", self.login], timeout=5.0)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(
        self, arguments: list[str], source: str | bytes | BinaryIO, timeout: float
    ) -> Completed:
        try:
            return run_program(arguments, input=source, timeout=timeout)
        except OutOfTime as error:
            raise TargetTimeout(
                f"A command on {self.name} took longer than {timeout:g} s and was ended. If the "
                "machine is only slow, run this again.",
                stdout=error.done.stdout.rpartition(f"{_BEGINS}\n")[2],
            ) from error
        except FileNotFoundError as error:
            if error.filename is None:  # no program: a folder for temporary files is missing
                raise
            raise MachineError(f"This machine has no {arguments[0]}.") from error

    def _root_shell(self, timeout: float) -> str:
        """The command that gives a root shell. Raises: NoSudo."""
        asked = self.run("id -u; command -v sudo", timeout=min(timeout, 30.0))
        uid, *sudo = asked.stdout.split()
        if uid == "0":
            return "sh"
        user = self.user or "this user"
        if not sudo:
            raise NoSudo(
                f"{user} is not root on {self.name}, and there is no sudo. Log in as root instead."
            )
        tried = self.run("sudo -n true", timeout=min(timeout, 30.0))
        if not tried.ok:
            raise NoSudo(
                f"{user} may not use sudo on {self.name} without typing a password. Run this as "
                'root, or allow it there: echo "$USER ALL=(ALL) NOPASSWD:ALL" | '
                "sudo tee /etc/sudoers.d/maestrale"
            )
        return "sudo -n sh"

    def _explained(self, stderr: str) -> MachineError:
        key = str(self.identity) if self.identity is not None else ""
        return ssh_errors.explain(stderr, str(self.host), self.port or 22, self.login, identity=key)

    def _control_folder(self) -> str | None:
        if self._folder is None:
            # A socket's path must stay under some 100 characters, so not below a long TMPDIR. On
            # a full disk each command logs in by itself.
            with contextlib.suppress(OSError):
                self._folder = tempfile.mkdtemp(prefix="maestrale-", dir="/tmp")
        return self._folder


def _whole(script: str) -> str:
    """The script as one compound command: sh reads all of it before a command can eat the rest."""
    return f"{{\n{script}\n}} </dev/null\n"


def _client() -> tuple[str, ...]:
    if shutil.which("ssh") is None:
        raise ssh_errors.no_client()
    return _SSH
