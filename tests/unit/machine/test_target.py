"""Targets: how they are named, scripts on this machine, and what ssh's failures mean."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest

from maestrale.errors import (
    HostKeyRefused,
    LoginRefused,
    MachineError,
    SettingsError,
    TargetTimeout,
    TargetUnreachable,
)
from maestrale.machine import ssh_errors
from maestrale.machine.target import Target


@pytest.mark.parametrize(
    ("text", "login", "port"),
    [
        ("me@host", "me@host", 0),
        ("host", "host", 0),
        ("me@host:2222", "me@host:2222".partition(":")[0], 2222),
        ("me@10.0.0.1", "me@10.0.0.1", 0),
        ("me@[fe80::1%eth0]:2222", "me@fe80::1%eth0", 2222),
        ("me@[::1]", "me@::1", 0),
        ("me@::1", "me@::1", 0),
        ("ssh://me@host:22/", "me@host", 22),
        ("my-alias_1", "my-alias_1", 0),
    ],
)
def test_names(text: str, login: str, port: int) -> None:
    target = Target.parse(text)
    assert (target.login, target.port, target.local) == (login, port, False)


@pytest.mark.parametrize(
    "text",
    ["", "-oProxyCommand=touch x", "me@-oProxyCommand=x", "me@host name", "me@host;id", "@host",
     "me@", "me@host:port", "me@host:99999", "-l@host", "me@host\n", "ftp:", "me@$(id)"],
)  # fmt: skip
def test_what_names_no_machine_is_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(SettingsError):
        Target.parse(text)


def test_options_that_contradict_the_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="names port 22, and --port says 23"):
        Target.parse("me@host:22", port=23)
    with pytest.raises(SettingsError, match="name it"):
        Target.parse(None, port=22)
    with pytest.raises(SettingsError, match="no file"):
        Target.parse("me@host", identity=tmp_path / "none")
    assert Target.parse("me@host", port=23).name == "me@host:23"


def test_here_scripts_run_in_sh_whatever_they_hold() -> None:
    with Target.parse(None) as here:
        done = here.run("cat\nprintf '%s' \"it's $((6 * 7))\"; exit 4")
        assert (done.rc, done.stdout, done.ok) == (4, "it's 42", False)
        assert here.run("wc -c", input=io.BytesIO(b"x" * 100_000)).stdout.strip() == "100000"
        assert here.run("printf '\\377'").stdout == "\ufffd"
        with here.forward(0, 8000) as port:
            assert port == 8000


def test_here_a_hang_is_ended_with_its_children(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    stubborn = "trap '' TERM; while :; do sleep 1; done"
    script = f'echo so far; sh -c "{stubborn}" & echo $! >{file}; wait'
    with Target.parse(None) as here, pytest.raises(TargetTimeout) as caught:
        here.run(script, timeout=2)
    assert caught.value.stdout == "so far\n"
    status = Path(f"/proc/{file.read_text().strip()}/stat")
    ends = time.monotonic() + 20
    while time.monotonic() < ends and _lives(status):
        time.sleep(0.05)
    assert not _lives(status)


def _lives(status: Path) -> bool:
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_here_files_are_copied_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    with Target.parse(None) as here:
        here.copy_to(tmp_path / "a", str(tmp_path / "new" / "b"))
        if os.geteuid() == 0:
            assert here.run("id -u", as_root=True).stdout == "0\n"
        with pytest.raises(MachineError, match="Can't copy a to /proc/b"):
            here.copy_to(tmp_path / "a", "/proc/b")
    assert (tmp_path / "new" / "b").read_text() == "text"


# As OpenSSH 9.2 and 9.9 write them.
FAILURES = [
    ("ssh: Could not resolve hostname gpu: Name or service not known",
     TargetUnreachable, "its name can't be resolved"),
    ("ssh: connect to host 10.1.1.1 port 22: Connection refused",
     TargetUnreachable, "nothing listens on port 2222"),
    ("ssh: connect to host 10.1.1.1 port 22: Connection timed out",
     TargetUnreachable, "firewall"),
    ("ssh: connect to host 10.1.1.1 port 22: No route to host",
     TargetUnreachable, "no route"),
    ("ssh: connect to host 10.1.1.1 port 22: Network is unreachable",
     TargetUnreachable, "Check the network here"),
    ("kex_exchange_identification: read: Connection reset by peer\n"
     "Connection reset by 10.1.1.1 port 22",
     TargetUnreachable, "it closed the connection at once"),
    ("Connection closed by 10.1.1.1 port 22", TargetUnreachable, "it closed the connection"),
    ("command-line: line 0: Bad configuration option: nonsense",
     TargetUnreachable, "--ssh-option"),
    ("me@gpu: Permission denied (publickey).", LoginRefused, "accepts none of the keys here"),
    ("Received disconnect from 10.1.1.1 port 22:2: Too many authentication failures",
     LoginRefused, "--identity"),
    ("Host key verification failed.", HostKeyRefused, "ssh -p 2222 me@gpu"),
    ("No ED25519 host key is known for gpu and you have requested strict checking.\n"
     "Host key verification failed.", HostKeyRefused, "--accept-new-host-key"),
    ("@@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@@\n"
     "Host key verification failed.", HostKeyRefused, r"ssh-keygen -R '\[gpu\]:2222'"),
    ("Timeout, server gpu not responding.", TargetUnreachable, "Timeout, server gpu"),
    ("", TargetUnreachable, "it said nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("stderr", "kind", "says"), FAILURES)
def test_each_failure_of_ssh_says_what_to_do(
    stderr: str, kind: type[MachineError], says: str
) -> None:
    error = ssh_errors.explain(stderr, "gpu", 2222, "me@gpu")
    assert type(error) is kind
    with pytest.raises(kind, match=says):
        raise error
    assert "\n" not in str(error)
