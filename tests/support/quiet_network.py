"""A network of its own, that leads nowhere and notes who would be spoken to; and an empty machine.

    python quiet_network.py FOLDER COMMANDS.json

runs each command in network, mount and process namespaces (`enclosed` starts it there): all
addresses lead back into it, a resolver answers every name, a proxy takes every request, and what
any of them sees is noted. /tmp, /var/tmp and /dev/shm are empty at the beginning, but for this
checkout and its Python where they lie there. What was seen, what the commands said and which files
were left is in FOLDER/record.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROXY_PORT = 3128
NAME_PORT = 53
BARE = ("/tmp", "/var/tmp", "/dev/shm")
PLACE = Path("/mnt")
# Neither a proxy of the machine's, nor what tells programs that they are tested, gets in.
NOT_INHERITED = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "DO_NOT_TRACK", "TMPDIR")


@dataclass
class Record:
    """What was seen: `names` asked for, `proxied` requests, `packets` to other machines, the files
    `left` (by their place), and how each command ended."""

    names: list[str] = field(default_factory=list)
    proxied: list[str] = field(default_factory=list)
    packets: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def enclosed(folder: Path, commands: list[list[str]], environment: dict[str, str]) -> Record:
    """Run commands with HOME, working folder and network empty. Needs root, or user namespaces."""
    plan = folder / "commands.json"
    plan.write_text(json.dumps(commands))
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid():
        unshare.append("--map-root-user")
    kept = {
        name: value
        for name, value in environment.items()
        if name not in NOT_INHERITED and "proxy" not in name.lower() and not name.startswith("XDG_")
    }
    done = subprocess.run(
        [*unshare, sys.executable, __file__, str(folder), str(plan)],
        env=kept,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Record(**json.loads((folder / "record.json").read_text()))


def main(folder: Path, plan: Path) -> None:
    commands = json.loads(plan.read_text())
    PLACE.mkdir(exist_ok=True)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", str(folder), str(PLACE)], check=True)
    resolver = PLACE / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--bind", str(resolver), os.path.realpath("/etc/resolv.conf")])
    kept = empty_places()
    for words in (
        "link set lo up",
        "route add local default dev lo",
        "-6 route add local default dev lo",
    ):
        subprocess.run(["ip", *words.split()], check=words[0] != "-")  # IPv6 may be off
    record = Record()
    for work in (watch_packets, answer_names, take_requests):
        started = threading.Event()
        threading.Thread(target=work, args=(record, started), daemon=True).start()
        assert started.wait(10)
    home, work_folder = PLACE / "home", PLACE / "work"
    home.mkdir()
    work_folder.mkdir()
    proxy = f"http://127.0.0.1:{PROXY_PORT}"
    environment = {
        **os.environ,
        "HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"), proxy),
        "NO_PROXY": "127.0.0.1,localhost",
    }
    for command in commands:
        done = subprocess.run(
            command, cwd=work_folder, env=environment, capture_output=True, text=True, timeout=600
        )
        record.codes.append(done.returncode)
        record.outputs.append(done.stdout + done.stderr)
    threading.Event().wait(1.0)  # what was begun at the end is noted too
    record.left = sorted(
        [f"home/{path.relative_to(home)}" for path in home.rglob("*") if not path.is_dir()]
        + [f"work/{path.relative_to(work_folder)}" for path in work_folder.rglob("*")]
        + left_in_places(kept)
    )
    (PLACE / "record.json").write_text(json.dumps(vars(record)))
    shutil.rmtree(home)


def empty_places() -> list[Path]:
    """Have nothing in the bare places but what the commands are run from, which is returned."""
    needed = {Path(__file__).resolve().parents[2], Path(sys.prefix), Path(sys.base_prefix)}
    kept = [
        each
        for each in needed
        if any(each.is_relative_to(place) for place in BARE)
        and not any(each != other and each.is_relative_to(other) for other in needed)
    ]
    for number, each in enumerate(kept):
        aside = PLACE / f"kept-{number}"
        aside.mkdir()
        subprocess.run(["mount", "--bind", str(each), str(aside)], check=True)
    for place in BARE:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    for number, each in enumerate(kept):
        each.mkdir(parents=True)
        subprocess.run(["mount", "--bind", str(PLACE / f"kept-{number}"), str(each)], check=True)
    return kept


def left_in_places(kept: list[Path]) -> list[str]:
    """All that lies in the bare places and in none of the folders that were kept."""
    found = []
    for place in BARE:
        for folder, folders, files in os.walk(place):
            paths = [Path(folder, name) for name in folders]
            folders[:] = [path.name for path in paths if path not in kept]
            found += [path for path in paths if not any(each.is_relative_to(path) for each in kept)]
            found += [Path(folder, name) for name in files]
    return [str(path) for path in found]


def watch_packets(record: Record, started: threading.Event) -> None:
    """Every packet to another machine's address: what asks neither a resolver nor a proxy."""
    every = 3  # ETH_P_ALL
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(every)) as sniffer:
        started.set()
        while True:
            packet, address = sniffer.recvfrom(65536)
            if address[2] == socket.PACKET_OUTGOING and (found := _destination(packet)):
                record.packets.append(found)


def _destination(packet: bytes) -> str | None:
    """`address port` of one that leaves the machine."""
    if packet[0] >> 4 == 4:
        source, target = packet[12:16], packet[16:20]
        kind, body = packet[9], packet[(packet[0] & 15) * 4 :]
        shown = socket.inet_ntoa(target)
        here = 127 in (source[0], target[0])  # an answer goes to whoever asked
    elif packet[0] >> 4 == 6:
        kind, target, body = packet[6], packet[24:40], packet[40:]
        shown = socket.inet_ntop(socket.AF_INET6, target)
        # Of the kernel's own: neighbours and groups on this link.
        here = (
            shown == "::1" or shown.startswith(("ff02:", "fe80:")) or kind == socket.IPPROTO_ICMPV6
        )
    else:
        return None
    if here or kind not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return None
    return f"{shown} {struct.unpack('!H', body[2:4])[0]}"


def answer_names(record: Record, started: threading.Event) -> None:
    """A resolver that knows every name, so that whoever asks goes on to connect."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", NAME_PORT))
        started.set()
        while True:
            query, peer = server.recvfrom(4096)
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
                at += 1 + query[at]
            record.names.append(".".join(labels))
            question = query[12 : at + 5]
            wants_ipv4 = query[at + 1 : at + 3] == b"\0\1"
            head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, int(wants_ipv4), 0, 0)
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("198.51.100.7")
            server.sendto(head + question + (answer if wants_ipv4 else b""), peer)


def take_requests(record: Record, started: threading.Event) -> None:
    """A proxy that notes the first line of each request, and refuses it."""
    with socket.create_server(("127.0.0.1", PROXY_PORT)) as listener:
        started.set()
        while True:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.settimeout(5)
                line = peer.recv(4096).partition(b"\r\n")[0]
                record.proxied.append(line.decode("latin-1"))
                peer.sendall(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def python(script: str) -> list[str]:
    """The command that runs a script."""
    return [sys.executable, "-c", script]


def maestrale(*arguments: Any) -> list[str]:
    """The command line, as a command."""
    return [sys.executable, "-m", "maestrale", *map(str, arguments)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
