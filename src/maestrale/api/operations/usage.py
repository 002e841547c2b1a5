"""GET /usage.json: who used what, for the operator's key; any other key learns of itself alone."""

from __future__ import annotations

import asyncio
import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from maestrale.api.accounts import usage_file
from maestrale.api.backend import Backend
from maestrale.api.context import context_of
from maestrale.errors import DatabaseUnusable, InvalidRequest, NotFound, Sent, Unavailable, quoted
from maestrale.usage import GROUPS, UsageRow, day_of, days_before, parse_day

USUAL_DAYS = 30
PARAMETERS = ("since", "until", "by")


def routes(backend: Backend) -> list[Route]:
    """All of them."""

    async def usage(request: Request) -> Response:
        query = request.query_params
        for name in query:
            if name not in PARAMETERS:
                raise InvalidRequest(
                    f"unknown parameter '{quoted(name)}'",
                    at=Sent(quoted(name)),
                    code="unknown_field",
                )
        last = _day(query.get("until"), "until") or day_of(time.time())
        first = _day(query.get("since"), "since") or days_before(last, USUAL_DAYS - 1)
        by = query.get("by", "day,key,model").split(",")
        if not set(by) <= set(GROUPS) or {"day", "month"} <= set(by):
            raise InvalidRequest(
                f"'by' is a list of these: {', '.join(GROUPS)}, with day or month.", at=Sent("by")
            )
        owner = context_of(request.scope).owner
        keys = () if owner is None or owner.operator else (owner.name,)
        rows = await asyncio.to_thread(_read, backend, list(dict.fromkeys(by)), first, last, keys)
        body = {"since": first, "until": last, "by": by, "rows": rows}
        return Response(
            msgspec.json.encode(body),
            media_type="application/json",
            headers={"cache-control": "no-store"},
        )

    return [Route("/usage.json", usage, methods=["GET"])]


def _day(text: str | None, name: str) -> str:
    try:
        return "" if text is None else parse_day(text)
    except ValueError as error:
        raise InvalidRequest(f"'{name}' is a day such as 2030-12-31.", at=Sent(name)) from error


def _read(
    backend: Backend, by: list[str], first: str, last: str, keys: tuple[str, ...]
) -> list[UsageRow]:
    """Raises: NotFound, Unavailable."""
    file = usage_file(backend.settings)
    if file is None:
        raise NotFound("This server doesn't count usage (--no-usage).", code="usage_not_counted")
    try:
        return file.read(by, first, last, keys=keys)
    except DatabaseUnusable as error:
        raise Unavailable(
            f"The usage can't be read: {error}.", code="usage_unavailable", retry_after=60
        ) from error
    finally:
        file.close()
