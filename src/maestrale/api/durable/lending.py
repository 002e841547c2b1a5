"""Streams that another process makes: how a server that took over has those of its predecessor.

The old server lends them at a socket in a folder that only this user may enter, and the new one
asks there before it makes an answer again. Who may have a stream was decided by the one that asks;
what isn't being made, or held, by the other is not lent.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvicorn
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from maestrale.api.context import SCOPE_KEY, RequestContext
from maestrale.api.durable.lenders import FAULT, Fault
from maestrale.api.durable.reader import RunReader
from maestrale.api.durable.streams import Streams
from maestrale.api.http.connections import ClientDisconnected
from maestrale.api.http.server import HttpServer
from maestrale.errors import ApiError, InvalidRequest, MaestraleError

END_SECONDS = 2


class LentStreams:
    """The old server's side: answers at `path` as long as it has streams to lend."""

    def __init__(self, streams: Streams, path: Path) -> None:
        self._streams = streams
        self._server = HttpServer(
            uvicorn.Config(
                self._answer,
                uds=str(path),
                http="httptools",
                interface="asgi3",
                proxy_headers=False,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=END_SECONDS,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.create_task(self._server.serve())
        await self._server.listening.wait()

    async def end(self) -> None:
        """Answer no more."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = QueryParams(scope["query_string"])
        id, key, owner = asked.get("id", ""), asked.get("key", ""), asked["owner"]
        streams = self._streams
        run = streams.find_key(key, owner) if key else streams.find(id, owner)
        if run is None:
            await _say(send, 404)
            return
        if scope["method"] == "DELETE":
            await streams.forget(id, owner)
            await _say(send, 200)
            return
        scope[SCOPE_KEY] = RequestContext(f"lent-{secrets.token_hex(8)}", run.context.dialect)
        try:
            await RunReader(streams, run, int(asked.get("after", "-1")))(scope, receive, send)
        except ClientDisconnected:
            raise
        except MaestraleError as error:
            message = error.message if isinstance(error, ApiError) else str(error)
            code = error.code if isinstance(error, ApiError) else ""
            wrong = isinstance(error, InvalidRequest)
            fault = msgspec.json.encode(Fault(message, code or "", wrong))
            await _say(send, 500, [(FAULT.encode(), b"1")], fault)


async def _say(
    send: Send, status: int, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})
