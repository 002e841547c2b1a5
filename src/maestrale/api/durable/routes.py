"""GET and DELETE /v1/streams/{id}: the rest of a stream, and its end."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from maestrale.api.backend import Backend
from maestrale.api.context import context_of
from maestrale.api.durable.reader import AFTER, RunReader, past_the_end
from maestrale.api.durable.resumable import again
from maestrale.errors import InvalidRequest, NotFound, Sent, quoted

PATH = "/v1/streams/{stream_id}"


def routes(backend: Backend) -> list[Route]:
    """Those of streams, whatever dialect they are in."""
    streams = backend.streams

    async def resume(request: Request) -> ASGIApp:
        context = context_of(request.scope)
        id, owner, after = request.path_params["stream_id"], context.owner_id, _after(request)
        run = streams.find(id, owner)
        if run is None:
            lent = await streams.lenders.find(id, owner, after)
            if lent is not None:
                return lent
            entry = await streams.ledger.find(id, owner) if streams.ledger.enabled else None
            if entry is None or not entry.body:
                raise not_found(id)
            if entry.ended and after >= entry.sent:
                raise past_the_end(after, entry.sent - 1)
            if entry.ended and after == entry.sent - 1:
                return Response(status_code=204)
            run = streams.find(id, owner) or again(backend, request, entry)
        context.dialect, context.name = run.context.dialect, run.context.name
        return RunReader(streams, run, after)

    async def delete(request: Request) -> Response:
        id, owner = request.path_params["stream_id"], context_of(request.scope).owner_id
        if not (streams.ledger.enabled and await streams.forget(id, owner)):
            raise not_found(id)
        return JSONResponse({"id": id, "object": "stream", "deleted": True})

    return [Route(PATH, resume, methods=["GET"]), Route(PATH, delete, methods=["DELETE"])]


def not_found(id: str) -> NotFound:
    """There is no such stream, or none for this key."""
    return NotFound(
        f"There is no stream {quoted(id)!r} here: it was not kept, is too old, or is another "
        "key's. Send the request again.",
        at=Sent("stream_id"),
        code="stream_not_found",
    )


def _after(request: Request) -> int:
    """The number of the last event that the client has; -1: none. Raises: InvalidRequest."""
    for name in request.query_params:
        if name != "starting_after":
            raise InvalidRequest(
                f"unknown parameter '{quoted(name)}'", at=Sent(quoted(name)), code="unknown_field"
            )
    given = [*request.query_params.getlist("starting_after")]
    given += [each for each in request.headers.getlist("last-event-id") if each]
    if not given:
        return -1
    if len(set(given)) > 1 or not (given[0].isascii() and given[0].isdigit()) or len(given[0]) > 9:
        raise InvalidRequest(
            "Last-Event-ID, or 'starting_after', is the number of the last event received.",
            at=AFTER,
        )
    return int(given[0])
