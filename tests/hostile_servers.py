"""Real sockets that misbehave, for tests of what asks a server."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'


def _head(kind: str = "application/json", length: int | None = None) -> bytes:
    size = "" if length is None else f"Content-Length: {length}\r\n"
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{size}Connection: close\r\n\r\n".encode()


def hang(peer: socket.socket, stop: threading.Event) -> None:
    stop.wait(60)


def hang_after_the_head(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(_head(length=100))
    stop.wait(60)


def drip(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(_head())
    while not stop.wait(0.05):
        peer.sendall(b" ")


def html(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(_head("text/html") + b"<!doctype html><title>Welcome</title>")


def closes_midway(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(_head(length=1000) + b'{"object":')


def closes_at_once(peer: socket.socket, stop: threading.Event) -> None:
    peer.shutdown(socket.SHUT_RDWR)


def no_http(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def broken_json(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(_head() + MODELS[:-3])


def endless(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(_head())
    while not stop.is_set():
        peer.sendall(b"x" * 65536)


def redirects(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


def gzip_lie(peer: socket.socket, stop: threading.Event) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n"
    peer.sendall(head + b"nope")


def stream_cut_off(peer: socket.socket, stop: threading.Event) -> None:
    """Lists its model, and breaks off in the middle of any chat answer."""
    if b"GET /v1/models" in _request(peer):
        peer.sendall(_head(length=len(MODELS)) + MODELS)
        return
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    peer.sendall(head + b"1f4\r\ndata: {")


def _request(peer: socket.socket) -> bytes:
    peer.settimeout(5)
    return peer.recv(65536)


@contextlib.contextmanager
def misbehaving(behave: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """The URL of a server that treats every connection so, until the block ends."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):  # the client gave up, as it should
            if behave is not stream_cut_off:
                _request(peer)
            behave(peer, stop)

    def accept() -> None:
        with contextlib.suppress(OSError):  # closed below
            while True:
                peer, _ = listener.accept()
                threads.append(threading.Thread(target=one, args=(peer,), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(5)
        for thread in threads:
            thread.join(5)
