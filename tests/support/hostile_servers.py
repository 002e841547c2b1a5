"""Real sockets that misbehave, for tests of what asks a server."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator

Behaviour = Callable[[socket.socket, threading.Event], None]
READS_ITSELF: set[Behaviour] = set()
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


READS_ITSELF.add(stream_cut_off)


def huge_list(peer: socket.socket, stop: threading.Event) -> None:
    """A list of models that is valid JSON, of 600 MB."""
    peer.sendall(_head() + b'{"object":"list","data":[')
    entries = b",".join([b'{"id":"m","object":"model"}'] * 2000)
    for _ in range(10_000):
        peer.sendall(entries + b",")
    peer.sendall(MODELS[MODELS.index(b"{", 1) :])


def nested_list(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(_head() + b'{"data":' + b"[" * 1_000_000)


def gzip_bomb(peer: socket.socket, stop: threading.Event) -> None:
    """2 MB that are 2 GB."""
    peer.sendall(_head().replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"))
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    for _ in range(2000):
        peer.sendall(packer.compress(zeros))
    peer.sendall(packer.flush())


def endless_head(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not stop.is_set():
        peer.sendall(b"x" * 65536)


def endless_headers(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\n")
    while not stop.is_set():
        peer.sendall(b"X-One: more\r\n" * 5000)


def redirects_elsewhere(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(
        b"HTTP/1.1 307 Elsewhere\r\nLocation: http://elsewhere.invalid/\x1b[2J\r\n"
        b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    )


def redirects_with_a_body(peer: socket.socket, stop: threading.Event) -> None:
    peer.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nConnection: close\r\n\r\n")
    while not stop.is_set():
        peer.sendall(b"x" * 65536)


def escapes(peer: socket.socket, stop: threading.Event) -> None:
    """All that is text in an error has escape sequences."""
    text = "a\x1b]52;c;eA==\x07b\u202ec\x9b2Jd"
    body = json.dumps({"error": {"message": text, "code": text, "type": text}}, ensure_ascii=False)
    peer.sendall(
        f"HTTP/1.1 400 {text[:-6]}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\n\r\n{body}".encode()
    )


def hub_words(peer: socket.socket, stop: threading.Event) -> None:
    """A hub's refusal, whose words are in its headers."""
    peer.sendall(
        b"HTTP/1.1 403 No\r\nX-Error-Message: a\x1b[2Jb\xc2\x9b2Jc\r\nX-Error-Code: \x1b[2J\r\n"
        b"Content-Length: 0\r\nConnection: close\r\n\r\n"
    )


def streaming(*parts: bytes, endless: bool = False) -> Behaviour:
    """Lists its model, and answers each chat with a stream of these parts, once or for ever."""

    def behave(peer: socket.socket, stop: threading.Event) -> None:
        if b"GET /v1/models" in _request(peer):
            peer.sendall(_head(length=len(MODELS)) + MODELS)
            return
        peer.sendall(_head("text/event-stream"))
        for part in parts:
            peer.sendall(part)
        while endless and not stop.is_set():
            peer.sendall(parts[-1])

    READS_ITSELF.add(behave)
    return behave


def event(text: str) -> bytes:
    """One event with a piece of an answer."""
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return b"data: " + json.dumps({"choices": choices}, ensure_ascii=False).encode() + b"\n\n"


LAST = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\ndata: [DONE]\n\n'
)


def _request(peer: socket.socket) -> bytes:
    peer.settimeout(5)
    return peer.recv(65536)


@contextlib.contextmanager
def misbehaving(behave: Behaviour) -> Iterator[str]:
    """The URL of a server that treats every connection so, until the block ends."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):  # the client gave up, as it should
            if behave not in READS_ITSELF:
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
