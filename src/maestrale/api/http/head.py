"""Heads: which of a request are refused that llhttp lets through, and that of our own refusal."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from maestrale.api.dialect import Dialect
from maestrale.api.errors import spelled
from maestrale.errors import ApiError, InvalidRequest

Header = tuple[bytes, bytes]


def check_head(version: str, headers: Sequence[Header], upgrade: bytes | None) -> None:
    """`upgrade`: the protocol that is asked for; None: the connection stays as it is.

    Raises: InvalidRequest.
    """
    if version not in ("1.0", "1.1"):
        raise InvalidRequest(f"HTTP/{version} isn't spoken here; use HTTP/1.1.")
    hosts = [name for name, _ in headers].count(b"host")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise InvalidRequest(f"A request needs exactly one Host header; this one has {hosts}.")
    coding = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if coding and (version == "1.0" or coding != [b"chunked"]):
        raise InvalidRequest("The only Transfer-Encoding spoken here is chunked, in HTTP/1.1.")
    if upgrade is None:
        return
    if upgrade == b"websocket":
        raise InvalidRequest("There is no WebSocket here; answers stream as SSE.")
    # llhttp takes the body of such a request for the other protocol's first bytes.
    lengths = [value for name, value in headers if name == b"content-length"]
    if coding or lengths not in ([], [b"0"]):
        raise InvalidRequest("A request with a body can't ask for an upgrade.")


def refusal(error: ApiError, dialect: Dialect, headers: Sequence[Header]) -> bytes:
    """The whole answer that refuses a request and ends its connection, in the dialect's words.

    `headers` are those of every answer.
    """
    body = spelled(error, dialect, dialect.names({}))
    every = [
        *headers,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    if error.retry_after is not None:
        every.append((b"retry-after", b"%d" % error.retry_after))
    status = dialect.status(error)
    head = b"HTTP/1.1 %d %s\r\n" % (status, _phrase(status))
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in every)
    return head + lines + b"\r\n" + body


def malformed() -> InvalidRequest:
    """What is no HTTP."""
    return InvalidRequest("The request isn't well-formed HTTP/1.1.", code="malformed_http")


def _phrase(status: int) -> bytes:
    """What HTTP says to a status; some of a dialect's own have no such words."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Error"
