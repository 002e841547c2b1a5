"""One HTTP exchange, bounded in time and size, with the moment of the first token."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from dataclasses import dataclass

import httpx

from maestrale.errors import CannotVerify

MOST_BODY_BYTES = 16 * 1024 * 1024
_FIRST_TOKEN = re.compile(rb'"(?:content|text|reasoning_content)"\s*:\s*"[^"]')


class NoAnswer(Exception):
    """The server gave no whole answer. The message says what happened, for a person.

    `began` tells whether the head of an answer (a status) had come.
    """

    def __init__(self, message: str, *, began: bool) -> None:
        super().__init__(message)
        self.began = began


@dataclass(frozen=True)
class Answer:
    """A whole answer. Times are in seconds from when the request was sent."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    seconds: float
    first_token: float | None  # of a stream: when the first text came

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def text(self) -> str:
        return self.body.decode("utf-8", errors="replace")


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this very machine (then no proxy may be asked)."""
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


async def exchange(
    method: str,
    url: str,
    headers: list[tuple[str, str]],
    body: bytes | None,
    *,
    seconds: float,
    connect_seconds: float,
) -> Answer:
    """Send one request and read the whole answer.

    `seconds` bounds the whole exchange, `connect_seconds` the connecting. Raises NoAnswer, and
    CannotVerify if the request itself can't be sent (a malformed URL or header).
    """
    began = False
    start = time.perf_counter()
    try:
        async with asyncio.timeout(seconds):
            async with (
                httpx.AsyncClient(
                    timeout=httpx.Timeout(None, connect=connect_seconds),
                    follow_redirects=True,
                    trust_env=not is_loopback(url),
                ) as client,
                client.stream(method, url, headers=headers, content=body) as response,
            ):
                began = True
                return await _read(response, start)
    except TimeoutError as error:
        what = "the answer did not end" if began else "no answer came"
        raise NoAnswer(f"{what} within {seconds:g} seconds", began=began) from error
    except httpx.ConnectTimeout as error:
        message = f"no connection within {connect_seconds:g} seconds"
        raise NoAnswer(message, began=False) from error
    except httpx.ConnectError as error:
        raise NoAnswer(f"no connection: {error or 'refused'}", began=False) from error
    except httpx.RemoteProtocolError as error:
        what = "the answer was cut off" if began else "no HTTP answer came"
        raise NoAnswer(f"{what}: {error}", began=began) from error
    except httpx.TooManyRedirects as error:
        raise NoAnswer("the server redirects without end", began=True) from error
    except httpx.DecodingError as error:
        raise NoAnswer(f"the answer can't be decompressed: {error}", began=True) from error
    except httpx.UnsupportedProtocol as error:
        raise CannotVerify(f"{url[:200]!r} is not a URL that can be asked: {error}") from error
    except httpx.TransportError as error:
        message = f"the connection broke: {error or type(error).__name__}"
        raise NoAnswer(message, began=began) from error
    except (httpx.InvalidURL, ValueError) as error:
        raise CannotVerify(f"The request {method} {url[:200]} can't be sent: {error}") from error


async def _read(response: httpx.Response, start: float) -> Answer:
    body = bytearray()
    first_token = None
    stream = response.headers.get("content-type", "").startswith("text/event-stream")
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MOST_BODY_BYTES:
            limit = MOST_BODY_BYTES // 2**20
            raise NoAnswer(f"the answer is longer than {limit} MiB and has no end", began=True)
        if stream and first_token is None and _FIRST_TOKEN.search(body):
            first_token = time.perf_counter() - start
    return Answer(
        status=response.status_code,
        reason=response.reason_phrase,
        headers=tuple(response.headers.multi_items()),
        body=bytes(body),
        seconds=time.perf_counter() - start,
        first_token=first_token,
    )
