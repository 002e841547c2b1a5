"""Machines over SSH, against a real OpenSSH server."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest

from maestrale.errors import (
    HostKeyRefused,
    LoginRefused,
    MachineError,
    NoSshClient,
    NoSudo,
    TargetTimeout,
    TargetUnreachable,
    TargetUnusable,
)
from maestrale.machine import target as target_module
from maestrale.machine.probe import gather
from maestrale.machine.target import Target
from serving import clean_environment, free_port
from ssh_server import AS_ROOT, AVAILABLE, SshServer, ssh_server

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs OpenSSH's client and server")
as_root = pytest.mark.skipif(not AS_ROOT, reason="makes users for the server: needs root")


@pytest.fixture(scope="module")
def server() -> Iterator[SshServer]:
    with ssh_server() as one:
        yield one


def doctor(server: SshServer, *more: str, user: str = "") -> subprocess.CompletedProcess[str]:
    options = [word for one in server.options() for word in ("--ssh-option", one)]
    return subprocess.run(
        [sys.executable, "-m", "maestrale", "doctor", f"{user or server.user}@127.0.0.1",
         "--port", str(server.port), *options, *more],
        env=clean_environment(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(server.folder / "hf")),
        capture_output=True,
        text=True,
    )  # fmt: skip


def test_a_script_runs_there_as_it_is(server: SshServer) -> None:
    text = 'it\'s $HOME \\ "quoted"\nsecond line'
    with server.target() as machine:
        done = machine.run(f"printf '%s' {shlex.quote(text)}; cat; echo no >&2; exit 3")
        assert (done.rc, done.stdout, done.stderr.strip()) == (3, text, "no")
        assert machine.run("cat", input=text).stdout == text


def test_one_connection_serves_all_commands(server: SshServer) -> None:
    log = server.folder / "log"
    before = log.read_text().count("Accepted publickey")
    with server.target() as machine:
        folder = Path(str(machine._control_folder()))
        for number in range(4):
            assert machine.run(f"echo {number}").stdout == f"{number}\n"
    assert log.read_text().count("Accepted publickey") == before + 1
    assert not folder.exists()


def test_files_and_folders_are_copied(server: SshServer, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    source = tmp_path / "from"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "data.bin").write_bytes(data)
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o750)
    there = tmp_path / "it's there"
    with server.target() as machine:
        machine.copy_to(source, str(there / "folder"))
        machine.copy_to(source / "run", str(there / "alone"))
        with pytest.raises(MachineError, match=r"Can't copy run to /proc/x/y on .*"):
            machine.copy_to(source / "run", "/proc/x/y")
    assert (there / "folder/inner/data.bin").read_bytes() == data
    assert (there / "alone").stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in there.iterdir()) == ["alone", "folder"]


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_port_is_forwarded_and_given_back(server: SshServer) -> None:
    with HTTPServer(("127.0.0.1", 0), _Hello) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            with server.target() as machine, machine.forward(0, web.server_port) as port:
                assert port != web.server_port
                assert urlopen(f"http://127.0.0.1:{port}/", timeout=10).read() == b"hello"
            with pytest.raises(OSError):  # noqa: PT011 (refused: the tunnel is gone)
                urlopen(f"http://127.0.0.1:{port}/", timeout=10)
            with (
                server.target() as machine,
                pytest.raises(MachineError, match=r"Port \d+ of this machine is taken"),
                machine.forward(web.server_port, 80),
            ):
                pass
        finally:
            web.shutdown()
            thread.join()


def test_what_takes_too_long_is_ended(server: SshServer) -> None:
    with server.target() as machine:
        machine.run("true")
        with pytest.raises(TargetTimeout, match="took longer than 4 s") as caught:
            machine.run("echo begun; sleep 60", timeout=4)
        assert caught.value.stdout == "begun\n"
        assert machine.run("echo again").stdout == "again\n"


def test_a_wrong_key(server: SshServer) -> None:
    with (
        server.target(key=server.folder / "stranger") as machine,
        pytest.raises(LoginRefused, match=r"does not accept the key .*stranger.*ssh-copy-id"),
    ):
        machine.run("true")


def test_keys_that_ssh_can_not_use(server: SshServer, tmp_path: Path) -> None:
    open_to_all, public = tmp_path / "open", tmp_path / "key.pub"
    open_to_all.write_bytes(server.key.read_bytes())
    open_to_all.chmod(0o644)
    with server.target(key=open_to_all) as one, pytest.raises(LoginRefused, match="chmod 600"):
        one.run("true")
    public.write_bytes((server.folder / "key.pub").read_bytes())
    public.chmod(0o600)
    with server.target(key=public) as one, pytest.raises(LoginRefused, match=r"without \.pub"):
        one.run("true")


def test_a_key_with_a_passphrase_is_not_asked_for(server: SshServer, tmp_path: Path) -> None:
    key = tmp_path / "secret"
    key.write_bytes(server.key.read_bytes())
    key.chmod(0o600)
    change = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key)]
    subprocess.run(change, check=True, capture_output=True)
    with server.target(key=key) as one, pytest.raises(LoginRefused, match="passphrase"):
        one.run("true")


def test_a_port_that_is_no_ssh_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "CONNECT_SECONDS", 1)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Target.parse(f"me@127.0.0.1:{silent.getsockname()[1]}") as machine,
        pytest.raises(TargetUnreachable, match="no answer on port"),
    ):
        machine.run("true")
    with HTTPServer(("127.0.0.1", 0), _Hello) as web:
        thread = threading.Thread(target=web.handle_request)
        thread.start()
        with (
            Target.parse(f"me@127.0.0.1:{web.server_port}") as machine,
            pytest.raises(TargetUnreachable, match="closed the connection"),
        ):
            machine.run("true")
        thread.join()


def test_a_close_ends_the_process_that_holds_the_connection(server: SshServer) -> None:
    def holders(folder: str) -> int:
        found = 0
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += folder.encode() in entry.read_bytes()
        return found

    with server.target() as machine:
        machine.run("true")
        folder = str(machine._control_folder())
        assert holders(folder) == 1
    ends = time.monotonic() + 20
    while holders(folder) and time.monotonic() < ends:
        time.sleep(0.1)
    assert holders(folder) == 0


def test_after_a_close_a_new_connection_is_made(server: SshServer) -> None:
    machine = server.target()
    assert machine.run("echo one").stdout == "one\n"
    machine.close()
    assert machine.run("echo two").stdout == "two\n"
    machine.close()


def test_an_unknown_user(server: SshServer) -> None:
    with server.target("nobody-such") as machine, pytest.raises(LoginRefused, match="user's name"):
        machine.run("true")


def test_a_host_key_never_seen(server: SshServer, tmp_path: Path) -> None:
    known = tmp_path / "known"
    address = f"{server.user}@127.0.0.1:{server.port}"
    options = server.options(known_hosts=known)
    strange = Target.parse(address, identity=server.key, options=options)
    with strange, pytest.raises(HostKeyRefused, match="--accept-new-host-key"):
        strange.run("true")
    assert not known.exists()
    with Target.parse(address, identity=server.key, options=options, accept_new=True) as machine:
        assert machine.run("echo in").stdout == "in\n"
    host = (server.folder / "host.pub").read_text().split()[1]
    assert host in known.read_text()


def test_a_host_key_that_changed_is_never_taken(server: SshServer, tmp_path: Path) -> None:
    other = (server.folder / "stranger.pub").read_text().split()[:2]
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {' '.join(other)}\n")
    machine = Target.parse(
        f"{server.user}@127.0.0.1:{server.port}",
        identity=server.key,
        options=server.options(known_hosts=known),
        accept_new=True,
    )
    with machine, pytest.raises(HostKeyRefused, match=r"another host key.*ssh-keygen -R"):
        machine.run("true")


def test_a_port_where_nothing_listens(server: SshServer) -> None:
    machine = Target.parse(f"{server.user}@127.0.0.1:{free_port()}", identity=server.key)
    with machine, pytest.raises(TargetUnreachable, match="nothing listens on port"):
        machine.run("true")


def test_a_name_that_is_none() -> None:
    with Target.parse("me@nowhere.invalid") as machine, pytest.raises(
        TargetUnreachable, match="its name can't be resolved"
    ):  # fmt: skip
        machine.run("true")


def test_no_ssh_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Target.parse("me@host") as machine, pytest.raises(NoSshClient, match="openssh-client"):
        machine.run("true")


@as_root
def test_a_user_without_sudo(server: SshServer) -> None:
    with server.target("visitor") as machine:
        assert machine.run("id -u").stdout == "61001\n"
        with pytest.raises(NoSudo, match="sudo"):
            machine.run("true", as_root=True)


@as_root
def test_root_needs_no_sudo(server: SshServer) -> None:
    with server.target() as machine:
        assert machine.run("id -u; cat", input="all\n", as_root=True).stdout == "0\nall\n"


@as_root
def test_a_login_without_a_shell(server: SshServer) -> None:
    with server.target("locked") as machine, pytest.raises(
        TargetUnusable, match="This account is currently not available"
    ):  # fmt: skip
        gather(machine)


@as_root
def test_a_login_that_talks_disturbs_nothing(server: SshServer) -> None:
    with server.target("odd") as machine:
        facts = gather(machine)
        assert machine.run("echo this").stdout == "this\n"
        with pytest.raises(NoSudo):
            machine.run("true", as_root=True)
    assert (facts.user, facts.system, facts.unanswered) == ("odd", "Linux", ())


def test_doctor_over_ssh(server: SshServer) -> None:
    done = doctor(server, "--json", "--identity", str(server.key))
    document = json.loads(done.stdout)
    assert document["target"] == f"{server.user}@127.0.0.1"
    assert done.returncode == (1 if document["verdict"] == "problem" else 0)
    states = {one["check"]: one["state"] for one in document["findings"]}
    assert states["time"] == "ok"  # by the clock here, over the connection
    assert document["facts"]["system"] == "Linux"
    assert abs(document["facts"]["clock"] - Path(server.folder).stat().st_mtime) < 3600


@as_root
def test_doctor_as_a_user_without_rights(server: SshServer) -> None:
    done = doctor(server, "--json", "--identity", str(server.key), user="visitor")
    found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["rights"]["state"] == "warning"
    assert found["system"]["state"] in ("ok", "warning", "problem")
    assert done.stderr == ""


@as_root
@pytest.mark.parametrize("user", ["65534", "61009"], ids=["nobody", "no such user"])
def test_doctor_here_as_a_user_without_a_home(user: str) -> None:
    done = subprocess.run(
        ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "env", "-i",
         f"PYTHONPATH={clean_environment()['PYTHONPATH']}", "HF_HUB_OFFLINE=1",
         sys.executable, "-m", "maestrale", "doctor", "--json"],
        capture_output=True,
        text=True,
        cwd="/",
    )  # fmt: skip
    if "Permission denied" in done.stderr or "No module named" in done.stderr:
        pytest.skip("the sources can't be read by others here")
    assert done.stderr == ""
    found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["rights"]["state"] == "warning"
    assert found["network"]["state"] == "ok"  # nothing was asked


def test_doctor_says_in_one_line_why_it_can_not_look(server: SshServer) -> None:
    done = doctor(server, "--identity", str(server.folder / "stranger"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("maestrale: 127.0.0.1 does not accept the key ")
    assert len(done.stderr.splitlines()) == 1
