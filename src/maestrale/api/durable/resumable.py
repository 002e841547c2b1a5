"""The routes whose answers can be asked for again: what `resumable` makes of their endpoints.

With --durable every stream is; an answer to a request with an Idempotency-Key is in any case, of
every route that takes a POST: what isn't the model's answer has `idempotent` for it. Such a key
means what it does at Stripe: the same request with the same key gets the same answer, done or
running, as long as it is kept; another request with it is refused with 409. Errors are not kept:
whoever tries again after one is answered anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from msgspec import Struct, structs
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maestrale.api.backend import Backend
from maestrale.api.context import ALL, CLIENT_LEFT, RequestContext, context_of
from maestrale.api.deployment import Deployment
from maestrale.api.durable.reader import REPLAYED, RunReader
from maestrale.api.durable.run import SEE_OTHER, KeyTaken, Run
from maestrale.api.durable.streams import IDEMPOTENCY_KEY, Streams
from maestrale.api.errors import as_api_error
from maestrale.api.http.body import check_media_type
from maestrale.api.http.connections import ClientDisconnected
from maestrale.api.request_log import tell
from maestrale.durable.ledger import Entry, Facts, Output
from maestrale.errors import (
    IdempotencyConflict,
    InvalidRequest,
    ModelNotFound,
    Sent,
    UnsupportedParameter,
)

MOST_KEY = 255
ROUTED = ("app", "router", "route", "endpoint", "path_params")  # what the way to a route left
Endpoint = Callable[[Request], Awaitable[ASGIApp]]


def resumable(backend: Backend, endpoint: Endpoint) -> Endpoint:
    """An endpoint of the model's answers, which can be asked for again where that is wanted."""
    streams = backend.streams

    async def answer(request: Request) -> ASGIApp:
        context = context_of(request.scope)
        if context.run is not None:  # it is made to be asked for again
            return await endpoint(request)
        key = _key_of(request, streams)
        if key is None and not (streams.durable and context.keep):
            return await endpoint(request)
        await backend.check_ready()
        check_media_type(request.scope)
        return await _once(backend, endpoint, request, key)

    return answer


def idempotent(backend: Backend, endpoint: Endpoint) -> Endpoint:
    """Any other endpoint, which answers once to a request with an Idempotency-Key."""

    async def answer(request: Request) -> ASGIApp:
        of_run = context_of(request.scope).run is not None
        key = None if of_run else _key_of(request, backend.streams)
        return await (endpoint(request) if key is None else _once(backend, endpoint, request, key))

    return answer


async def _once(backend: Backend, endpoint: Endpoint, request: Request, key: str | None) -> ASGIApp:
    """What reads the answer of this endpoint, made apart from the connection; or the one that has
    this Idempotency-Key already.
    """
    streams, context, path = backend.streams, context_of(request.scope), request.scope["path"]
    body = await backend.bodies.raw(request.scope, request.receive)
    entry = Entry(
        id="",
        owner=context.owner_id,
        key=key,
        digest=hashlib.blake2b(path.encode() + b"\0" + body, digest_size=20).digest(),
        path=path,
        body=body,
        facts=Facts(),
    )

    async def route(scope: Scope, run: Run) -> None:
        async with _settled(backend, run, scope):
            response = await endpoint(Request(scope, run.receive))
            await response(scope, run.receive, run.send)

    before = await _before(backend, request, entry)
    if before is None:
        run = streams.start(entry, context.moved(), request.scope, route)
    else:  # it costs nothing
        context.counted = ALL
        await backend.settle(context)
        if not isinstance(before, Run):
            return before
        run = before

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        replayed = REPLAYED if before is not None else []
        try:
            await RunReader(streams, run, headers=replayed)(scope, receive, send)
        except KeyTaken:
            streams.drop(run)
            other = await _before(backend, request, entry)
            if other is None:
                raise
            if not isinstance(other, Run):
                await other(scope, receive, send)
                return
            await RunReader(streams, other, headers=REPLAYED)(scope, receive, send)

    return app


@contextlib.asynccontextmanager
async def _settled(backend: Backend, run: Run, scope: Scope) -> AsyncIterator[None]:
    """What an answer used is counted before its readers learn of its end. Where none is left, the
    log is told of it.
    """
    context = run.context
    try:
        yield
    except ClientDisconnected:
        context.status = CLIENT_LEFT
        raise
    except KeyTaken:
        raise
    except Exception as error:
        context.refused = as_api_error(error).code
        raise
    finally:
        await backend.settle(context)
        if not run.readers:
            context.status = context.status or run.status
            tell(backend, scope, context, logging.INFO)


def again(backend: Backend, request: Request, entry: Entry) -> Run:
    """The answer of an entry of the ledger: as it was kept, or made once more. It is charged for
    what it was not charged for before.
    """
    context, streams = context_of(request.scope), backend.streams
    own = RequestContext(context.id, request.app.state.dialects.at(entry.path))
    own.owner, own.key = context.owner, context.key
    if entry.output is not None:
        own.deployment = _asked_for(backend, entry.body)
        return Run.kept(streams.ledger, entry, entry.output, own)
    own.counted = ALL if entry.ended else entry.counted
    own.counts, own.settled = int(own.counted is None), False
    length = str(len(entry.body)).encode()
    scope = {name: value for name, value in request.scope.items() if name not in ROUTED}
    scope |= {
        "method": "POST",
        "path": entry.path,
        "raw_path": entry.path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", length)],
    }

    async def route(scope: Scope, run: Run) -> None:
        async with _settled(backend, run, scope):
            await request.app(scope, run.receive, run.send)

    return streams.start(entry, own, scope, route)


class _Asked(Struct):
    """What of a body is the same in all dialects."""

    model: str | None = None


def _asked_for(backend: Backend, body: bytes) -> Deployment | None:
    """The model that a body names, if there is one of that name."""
    with contextlib.suppress(msgspec.DecodeError, ModelNotFound):
        name = msgspec.json.decode(body, type=_Asked).model
        return None if name is None else backend.deployments.resolve(name)
    return None


async def _before(backend: Backend, request: Request, entry: Entry) -> Run | ASGIApp | None:
    """What has this Idempotency-Key already: here, or at another server that this one took over
    from. Raises: IdempotencyConflict, CannotKeep.
    """
    if entry.key is None:
        return None
    streams = backend.streams
    run, kept = streams.find_key(entry.key, entry.owner), None
    if run is None:
        kept = await streams.ledger.find_key(entry.key, entry.owner)
        run = streams.find_key(entry.key, entry.owner)  # it may have come meanwhile
    known = run.entry if run is not None else kept
    if known is not None and known.digest != entry.digest:
        raise IdempotencyConflict(
            f"This {IDEMPOTENCY_KEY} was used for another request: another path, or another body. "
            "Send another key."
        )
    if run is not None or kept is None:
        return run
    if kept.output is not None and kept.output.status == SEE_OTHER:
        return _there(request, kept.output)
    lent = None
    if kept.output is None:
        lent = await streams.lenders.find_key(entry.key, entry.owner)
    # Its body is the same: that of the ledger, where nothing of it was to be kept, is empty.
    return lent or again(backend, request, structs.replace(kept, body=entry.body))


def _there(request: Request, output: Output) -> ASGIApp:
    """What reads an answer where it is kept."""
    path, _, query = dict(output.headers)[b"location"].partition(b"?")
    scope = {name: value for name, value in request.scope.items() if name not in ROUTED}
    scope |= {"method": "GET", "path": path.decode(), "raw_path": path, "query_string": query}

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *REPLAYED]}
            await send(message)

        await request.app(scope, receive, send_more)

    return app


def _key_of(request: Request, streams: Streams) -> str | None:
    """The Idempotency-Key. Raises: InvalidRequest, UnsupportedParameter."""
    given = request.headers.getlist(IDEMPOTENCY_KEY)
    if not given:
        return None
    [key, *others] = given
    if others or not key or len(key) > MOST_KEY or not (key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"An {IDEMPOTENCY_KEY} is one header of 1 to {MOST_KEY} printable ASCII characters.",
            at=Sent(IDEMPOTENCY_KEY),
        )
    if not streams.ledger.enabled:
        raise UnsupportedParameter(
            f"{IDEMPOTENCY_KEY} is not supported: this server keeps nothing (--no-store).",
            at=Sent(IDEMPOTENCY_KEY),
        )
    return key
