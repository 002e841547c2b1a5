"""What systemd is told and gives: the main process, and sockets that outlive a restart.

Elsewhere than under systemd all of it does nothing. The protocol is that of sd_notify(3) and
sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping, Sequence

FIRST = 3  # file descriptor that systemd passes on
NAME = "maestrale"  # of our sockets in its store


def notify(text: str, fds: Sequence[int] = ()) -> bool:
    """Tell systemd; whether it is there to be told."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        return False
    address = "\0" + place[1:] if place.startswith("@") else place
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.connect(address)
        socket.send_fds(sock, [text.encode()], list(fds))
        return True
    return False


def main_process(pid: int) -> bool:
    """From now on this process is the service's."""
    return notify(f"MAINPID={pid}\nREADY=1\nSTATUS=Serving")


def keep(socks: Sequence[socket.socket]) -> None:
    """Have the sockets kept over a restart: what connects meanwhile waits. They take the place of
    those that were kept before.
    """
    notify(f"FDSTOREREMOVE=1\nFDNAME={NAME}")
    for sock in socks:
        notify(f"FDSTORE=1\nFDNAME={NAME}", [sock.fileno()])


def kept(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The sockets that systemd kept for us, or listens at; asked for once."""
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    socks = [socket.socket(fileno=fd) for fd in range(FIRST, FIRST + int(count))]
    for sock in socks:
        sock.set_inheritable(False)
        sock.setblocking(False)
    return socks
