"""The new server's side of lending (`lending.py`): it asks for what its predecessors make."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from starlette.types import ASGIApp, Receive, Scope, Send

from maestrale.api.http.connections import ClientDisconnected
from maestrale.api.sse import while_connected
from maestrale.errors import InvalidRequest, Unavailable

if TYPE_CHECKING:
    import httpx

SUFFIX = ".sock"
FAULT = "x-fault"
CONNECT_SECONDS = 2.0
SILENCE_SECONDS = 60.0  # a stream that pauses has comments meanwhile
# What a connection has of its own.
_OWN = {b"connection", b"date", b"keep-alive", b"server", b"transfer-encoding"}


class Fault(Struct, frozen=True):
    """Why a stream that is there can't be had so. `wrong`: the request is."""

    message: str
    code: str
    wrong: bool


class Lenders:
    """The folders in which others lend, as long as they live."""

    def __init__(self, folders: Iterable[str] = ()) -> None:
        self._folders = [Path(each) for each in folders]

    async def find(self, id: str, owner: str, after: int) -> ASGIApp | None:
        """The rest of this owner's stream, if one of them has it. Raises: InvalidRequest past its
        end, Unavailable.
        """
        return await self._ask({"id": id, "owner": owner, "after": str(after)})

    async def find_key(self, key: str, owner: str) -> ASGIApp | None:
        """The answer with this Idempotency-Key, if one of them has it. Raises: Unavailable."""
        found = await self._ask({"key": key, "owner": owner})
        if found is not None:
            found.headers.append((b"idempotent-replayed", b"true"))
        return found

    async def forget(self, id: str, owner: str) -> bool:
        """Have it stopped, and let go of. Whether one of them had it."""
        found = await self._ask({"id": id, "owner": owner}, method="DELETE")
        if found is None:
            return False
        await found.client.aclose()
        return True

    async def _ask(self, query: dict[str, str], method: str = "GET") -> _Borrowed | None:
        for folder in self._folders:
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                answer = await _borrow(path, query, method)
                if answer is not None:
                    return answer
        return None


class _Borrowed:
    """An answer whose body is still with its lender. Whoever doesn't send it on closes `client`."""

    def __init__(self, client: httpx.AsyncClient, answer: httpx.Response) -> None:
        self.client = client
        self.headers = [each for each in answer.headers.raw if each[0].lower() not in _OWN]
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._relay(send))
        finally:
            await self.client.aclose()

    async def _relay(self, send: Send) -> None:
        import httpx

        start = {"type": "http.response.start", "status": self._answer.status_code}
        await send({**start, "headers": self.headers})
        try:
            async for part in self._answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except httpx.HTTPError as error:  # cut, so that its client comes again
            raise ClientDisconnected from error
        await send({"type": "http.response.body", "body": b""})


async def _borrow(path: Path, query: dict[str, str], method: str) -> _Borrowed | None:
    import httpx

    client = httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(path)),
        timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
    )
    async with contextlib.AsyncExitStack() as unless_had:
        unless_had.push_async_callback(client.aclose)
        request = client.build_request(method, "http://lender/", params=query)
        try:
            answer = await client.send(request, stream=True)
            if FAULT in answer.headers:
                fault = msgspec.json.decode(await answer.aread(), type=Fault)
                kind = InvalidRequest if fault.wrong else Unavailable
                raise kind(fault.message, code=fault.code or None)
        except (httpx.HTTPError, msgspec.MsgspecError):  # it is gone
            return None
        if answer.status_code == 404:
            return None
        unless_had.pop_all()
        return _Borrowed(client, answer)
