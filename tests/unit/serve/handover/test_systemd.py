"""What systemd is told on its socket, and what is taken from it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from maestrale.serve.handover import systemd


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield sock


def test_it_learns_who_is_the_main_process(manager: socket.socket) -> None:
    assert systemd.main_process(4711)
    assert manager.recv(1000).decode().splitlines()[:2] == ["MAINPID=4711", "READY=1"]


def test_it_keeps_the_sockets_of_the_port_and_no_others(manager: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        systemd.keep([listener])
        assert manager.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=maestrale"
        said, fds, _, _ = socket.recv_fds(manager, 1000, 4)
        assert said == b"FDSTORE=1\nFDNAME=maestrale"
        with socket.socket(fileno=fds[0]) as kept:
            assert kept.getsockname() == listener.getsockname()


@pytest.mark.parametrize("place", ["", "/nonexistent/notify", "@nobody-listens-here"])
def test_without_it_nothing_happens(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    assert not systemd.main_process(1)


def test_what_it_gives_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        given = os.dup(listener.fileno())
        monkeypatch.setattr(systemd, "FIRST", given)
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
        [kept] = systemd.kept(environment)
        with kept:
            assert kept.getsockname() == listener.getsockname()
            assert not kept.get_inheritable()
        assert environment == {}
        assert systemd.kept(environment) == []


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), (str(os.getpid()), "x"), ("", "2")])
def test_what_is_another_processs_is_left(pid: str, count: str) -> None:
    assert systemd.kept({"LISTEN_PID": pid, "LISTEN_FDS": count}) == []
