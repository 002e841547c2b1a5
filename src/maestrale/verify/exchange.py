"""One HTTP exchange, bounded in time and size, with the moment of the first token."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass

import httpx

from maestrale.bounded import (
    MOST_BODY,
    UNCOMPRESSED,
    Oversized,
    Undecodable,
    read_parts_async,
)
from maestrale.config.addresses import is_loopback
from maestrale.errors import CannotVerify
from maestrale.printable import brief

_MOST_REDIRECTS = 10
_OVERLAP = 256  # bytes: the first token may be cut between two reads
_REDIRECTS = (301, 302, 303, 307, 308)
_FIRST_TOKEN = re.compile(rb'"(?:content|text|reasoning_content)"\s*:\s*"[^"]')


class NoAnswer(Exception):
    """The server gave no whole answer. The message says what happened, for a person.

    `began` tells whether the head of an answer (a status) had come.
    """

    def __init__(self, message: str, *, began: bool) -> None:
        super().__init__(message)
        self.began = began


@dataclass(frozen=True)
class HttpAnswer:
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


async def exchange(
    method: str,
    url: str,
    headers: list[tuple[str, str]],
    body: bytes | None,
    *,
    seconds: float,
    connect_seconds: float,
) -> HttpAnswer:
    """Send one request and read the whole answer.

    `seconds` bounds the whole exchange, `connect_seconds` the connecting. Raises NoAnswer, and
    CannotVerify if the request itself can't be sent (a malformed URL or header).
    """
    began = False
    start = time.perf_counter()
    try:
        async with asyncio.timeout(seconds):
            async with httpx.AsyncClient(
                timeout=httpx.Timeout(None, connect=connect_seconds),
                trust_env=not is_loopback(httpx.URL(url).host),
            ) as client:
                request = client.build_request(method, url, headers=headers, content=body)
                if "accept-encoding" not in {name.lower() for name, _ in headers}:
                    request.headers.update(UNCOMPRESSED)
                for _ in range(_MOST_REDIRECTS):
                    response = await client.send(request, stream=True)
                    began = True
                    try:
                        following = _following(client, request, response)
                        if following is None:
                            return await _read(response, start)
                    finally:
                        await response.aclose()
                    request = following
                raise NoAnswer("the server redirects without end", began=True)
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
    except Undecodable as error:
        raise NoAnswer(f"the answer can't be decompressed: {error}", began=True) from error
    except Oversized as error:
        raise NoAnswer(str(error), began=True) from error
    except httpx.UnsupportedProtocol as error:
        raise CannotVerify(f"{url[:200]!r} is not a URL that can be asked: {error}") from error
    except httpx.TransportError as error:
        message = f"the connection broke: {error or type(error).__name__}"
        raise NoAnswer(message, began=began) from error
    except (httpx.InvalidURL, ValueError) as error:
        raise CannotVerify(f"The request {method} {url[:200]} can't be sent: {error}") from error


def _following(
    client: httpx.AsyncClient, request: httpx.Request, response: httpx.Response
) -> httpx.Request | None:
    """The request that a redirect asks for; None where the answer is none.

    Raises: NoAnswer for one to another host, which nobody named.
    """
    if response.status_code not in _REDIRECTS or "location" not in response.headers:
        return None
    url = request.url.join(response.headers["location"])
    if url.host != request.url.host or url.scheme not in ("http", "https"):
        raise NoAnswer(
            f"the server redirects to another one, {brief(str(url), 200)}: give that URL if it "
            "is meant",
            began=True,
        )
    if response.status_code in (307, 308):
        return client.build_request(
            request.method, url, headers=request.headers, content=request.content
        )
    method = request.method if request.method in ("GET", "HEAD") else "GET"
    headers = httpx.Headers(request.headers)
    for name in ("content-length", "content-type", "transfer-encoding"):
        headers.pop(name, None)
    return client.build_request(method, url, headers=headers)


async def _read(response: httpx.Response, start: float) -> HttpAnswer:
    body = bytearray()
    first_token = None
    stream = response.headers.get("content-type", "").startswith("text/event-stream")
    async for part in read_parts_async(response, MOST_BODY):
        looked = max(0, len(body) - _OVERLAP)
        body += part
        if stream and first_token is None and _FIRST_TOKEN.search(body, looked):
            first_token = time.perf_counter() - start
    return HttpAnswer(
        status=response.status_code,
        reason=brief(response.reason_phrase, 80),
        headers=tuple(response.headers.multi_items()),
        body=bytes(body),
        seconds=time.perf_counter() - start,
        first_token=first_token,
    )
