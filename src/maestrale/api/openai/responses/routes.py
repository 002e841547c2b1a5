"""The routes of the Responses API."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from maestrale.api.backend import Backend
from maestrale.api.context import context_of
from maestrale.api.durable.resumable import idempotent, resumable
from maestrale.api.openai.responses.keeping import Keeping
from maestrale.api.openai.responses.reading import check_includes
from maestrale.api.openai.responses.schemas import ResponsesRequest
from maestrale.errors import InvalidRequest, Sent, quoted

ROOTS = ("/v1", "")  # some clients' base has no /v1
MOST_ITEMS = 100  # of one page
USUAL_ITEMS = 20
INCLUDE = ("include", "include[]")  # what is there is always told


def routes(backend: Backend) -> list[Route]:
    """All of them, with and without /v1."""
    keeping = Keeping(backend)

    async def create(request: Request) -> ASGIApp:
        await backend.check_ready()
        body = await backend.bodies.read(request.scope, request.receive, ResponsesRequest)
        if body.background:
            queued, headers = await keeping.run(request, body)
            if body.stream:
                return keeping.events(request, queued["id"], -1, headers)
            return JSONResponse(queued)
        answer, given = await keeping.answer(request, body)
        context = context_of(request.scope)
        if keeping.keeps(body, context):
            keeping.keep_at_end(answer, body, given, context.owner_id)
        return answer

    async def retrieve(request: Request) -> ASGIApp:
        query = _query(request, "stream", "starting_after", "include_obfuscation", *INCLUDE)
        streams = query.get("stream", "false")
        if streams not in ("true", "false"):
            raise InvalidRequest("'stream' is true or false.", at=Sent("stream"))
        kept = await keeping.current(request, request.path_params["response_id"])
        if streams == "true":
            after = _whole(query, "starting_after", -1, 0, 2**31 - 1)
            await keeping.check_stream(kept, after)
            return keeping.events(request, kept.id, after, [])
        if "starting_after" in query:
            raise InvalidRequest(
                "'starting_after' is for 'stream=true'.", at=Sent("starting_after")
            )
        return _json(kept.body)

    async def delete(request: Request) -> Response:
        _query(request)
        id, owner = _asked(request)
        await keeping.delete(id, owner)
        return JSONResponse({"id": id, "object": "response", "deleted": True})

    async def cancel(request: Request) -> Response:
        _query(request)
        return _json((await keeping.cancel(*_asked(request))).body)

    async def input_items(request: Request) -> Response:
        query = _query(request, "after", "limit", "order", *INCLUDE)
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest("'order' is asc or desc.", at=Sent("order"))
        most = _whole(query, "limit", USUAL_ITEMS, 1, MOST_ITEMS)
        found = await keeping.inputs(*_asked(request))
        if order == "desc":
            found.reverse()
        ids = [item.id for item in found]
        after = query.get("after")
        if after is not None and after not in ids:
            raise InvalidRequest(f"There is no item {quoted(after)!r} here.", at=Sent("after"))
        start = 0 if after is None else ids.index(after) + 1
        page = found[start : start + most]
        body = {
            "object": "list",
            "data": [msgspec.Raw(item.body) for item in page],
            "first_id": page[0].id if page else "",
            "last_id": page[-1].id if page else "",
            "has_more": start + most < len(found),
        }
        return _json(msgspec.json.encode(body))

    return [
        Route(f"{root}/responses{path}", endpoint, methods=[method])
        for root in ROOTS
        for path, endpoint, method in (
            ("", resumable(backend, create), "POST"),
            ("/{response_id}", retrieve, "GET"),
            ("/{response_id}", delete, "DELETE"),
            ("/{response_id}/cancel", idempotent(backend, cancel), "POST"),
            ("/{response_id}/input_items", input_items, "GET"),
        )
    ]


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _asked(request: Request) -> tuple[str, str]:
    """The id of the response that is asked for, and by whom."""
    return request.path_params["response_id"], context_of(request.scope).owner_id


def _query(request: Request, *names: str) -> dict[str, str]:
    """The query's parameters. Raises: InvalidRequest for others than these, and in `include`."""
    for name in request.query_params:
        if name not in names:
            raise InvalidRequest(
                f"unknown parameter '{quoted(name)}'", at=Sent(quoted(name)), code="unknown_field"
            )
    check_includes(value for name in INCLUDE for value in request.query_params.getlist(name))
    return dict(request.query_params)


def _whole(query: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query. Raises: InvalidRequest."""
    given = query.get(name)
    if given is None:
        return default
    if not (
        given.isascii() and given.isdigit() and len(given) < 12 and least <= int(given) <= most
    ):
        raise InvalidRequest(f"'{name}' is a number from {least} to {most}.", at=Sent(name))
    return int(given)
