"""The ASGI application: routes inside, and around them what every request goes through."""

from __future__ import annotations

import logging
import time

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maestrale.api.accounts import Charge
from maestrale.api.auth import OPEN_PATHS, Guard
from maestrale.api.backend import Backend
from maestrale.api.context import CLIENT_LEFT, RequestContext, context_of, new_context
from maestrale.api.dialect import Dialects
from maestrale.api.dialects import DIALECTS
from maestrale.api.durable import routes as durable
from maestrale.api.durable.streams import IDEMPOTENCY_KEY
from maestrale.api.errors import as_api_error, error_response
from maestrale.api.http.connections import ClientDisconnected
from maestrale.api.operations import health, openapi, pages, status, usage
from maestrale.api.operations.history import Event
from maestrale.api.request_log import tell
from maestrale.api.unknown_fields import HEADER, ignoring
from maestrale.config.addresses import is_loopback
from maestrale.errors import ApiError, EngineError, PermissionDenied, RateLimited, quoted
from maestrale.logs import LOGGER

CORS_METHODS = "GET, POST, DELETE, OPTIONS"
CORS_EXPOSED = (
    *("x-request-id", "x-seed", "x-max-tokens", "x-stream-id", "idempotent-replayed"),
    "retry-after",
    HEADER,
)
CORS_MAX_AGE = "600"
# Asked again and again by machines: not counted as requests.
PROBES = frozenset(
    {"/health", "/ping", "/version", "/load", "/metrics", "/status.json", "/usage.json"}
)


def build_app(backend: Backend, dialects: Dialects = DIALECTS) -> ASGIApp:
    """The application on a backend that may still wait for its model."""
    settings = backend.settings
    app = Starlette(
        routes=[
            *(route for dialect in dialects.all for route in dialect.routes(backend)),
            *durable.routes(backend),
            *health.routes(backend),
            *openapi.routes(dialects),
            *status.routes(backend),
            *usage.routes(backend),
            *pages.routes(),
        ],
        exception_handlers={
            ApiError: _answer_error,
            EngineError: _answer_error,
            HTTPException: _answer_error,
            Exception: _answer_error,  # and Starlette raises it again, for Gate to log
        },
    )
    app.router.redirect_slashes = False
    app.state.dialects = dialects
    guard = Guard(
        backend.keys,
        loopback=is_loopback(settings.host),
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=settings.allowed_origins,
    )
    return Gate(app, guard, dialects, backend)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnected):  # nobody reads it, and nothing failed
        return Response(status_code=CLIENT_LEFT)
    context = context_of(request.scope)
    answer = as_api_error(error, request.scope["path"], methods_at(request))
    if context.run is not None:
        answer = context.run.refusal(answer)
    context.refused = answer.code
    return error_response(answer, context)


def methods_at(request: Request) -> frozenset[str]:
    """The methods of all routes at the path; the router tells those of the first."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found.update(route.methods or ())
    return frozenset(found)


class Gate:
    """The outermost layer: request ids, keys and origins, CORS, last-resort errors, the log."""

    def __init__(
        self,
        app: ASGIApp,
        guard: Guard,
        dialects: Dialects,
        backend: Backend,
    ) -> None:
        self._app = app
        self._guard = guard
        self._dialects = dialects
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        dialect = self._dialects.at(scope["path"])
        context = new_context(scope, dialect)
        origin = _header(scope, b"origin")
        allowed = origin and self._guard.allows_origin(origin)
        extra = self._cors(origin, dialect.exposed_headers) if allowed else {}
        extra["x-request-id"] = context.id
        extra["x-content-type-options"] = "nosniff"

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = MutableHeaders(raw=list(message["headers"]))
                headers.update(extra)
                if context.answer is None or context.status >= 400:
                    await self._backend.settle(context)
                levels = await self._backend.accounts.levels(context.owner, context.charge)
                headers.update(dialect.headers(context.id, levels))
                if context.ignored:
                    headers[HEADER] = context.ignored.header
                message["headers"] = headers.raw
            await send(message)

        lenient = self._backend.settings.unknown_fields == "ignore"
        try:
            with ignoring(context.ignored if lenient else None):
                await self._answer(scope, receive, send_more, context)
        except ClientDisconnected:
            context.status = CLIENT_LEFT
        except Exception as error:
            context.error = type(error).__name__
            LOGGER.exception("Request %s failed", context.id)
            if not context.status:
                response = error_response(as_api_error(error), context)
                await response(scope, receive, send_more)
        finally:
            await self._backend.settle(context)
            if context.refused:
                self._backend.metrics.observe_rejected(context.refused)
            self._note(scope, context)
            self._log(scope, context)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, context: RequestContext
    ) -> None:
        try:
            if scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method"):
                await self._preflight(scope)(scope, receive, send)
                return
            context.owner = self._guard.check(scope)
            if context.owner is not None:
                context.key = context.owner.name
            if scope["method"] == "POST":
                context.charge = await self._take_request(scope, context)
                if scope["path"] not in OPEN_PATHS:
                    context.counts, context.settled = 1, False
        except ApiError as error:
            context.refused = error.code
            await error_response(error, context)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _take_request(self, scope: Scope, context: RequestContext) -> Charge | None:
        """Count it among its key's; a retry of one that was counted always has room in the day.

        Raises: RateLimited.
        """
        try:
            return await self._backend.accounts.take_request(context.owner)
        except RateLimited as error:
            once = _header(scope, IDEMPOTENCY_KEY.lower().encode())
            at_once = error.code == "requests_per_minute_exceeded"
            if at_once or not await self._backend.streams.has_key(once, context.owner_id):
                raise
            return None

    def _note(self, scope: Scope, context: RequestContext) -> None:
        """Keep what went wrong for the status page, errors within streams included."""
        code = context.refused
        if not code and context.answer is not None and context.answer.failure is not None:
            code = as_api_error(context.answer.failure).code
        if not code:
            return
        path = quoted(scope["path"])
        event = Event("error", code, time.time(), context.status, path, context.id)
        self._backend.events.add(event)

    def _preflight(self, scope: Scope) -> Response:
        """The answer to a browser that asks before it calls. Raises: PermissionDenied."""
        if not self._guard.allows_origin(_header(scope, b"origin")):
            raise PermissionDenied(
                "Pages from this origin may not call this server; "
                "allow them with --allowed-origins."
            )
        asked = _header(scope, b"access-control-request-headers")
        return Response(
            status_code=204,
            headers={
                "access-control-allow-methods": CORS_METHODS,
                "access-control-allow-headers": asked or "authorization, content-type",
                "access-control-max-age": CORS_MAX_AGE,
            },
        )

    def _cors(self, origin: str, exposed: tuple[str, ...]) -> dict[str, str]:
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": ", ".join((*CORS_EXPOSED, *exposed)),
            "vary": "Origin",
        }

    def _log(self, scope: Scope, context: RequestContext) -> None:
        """Count the request and tell of it."""
        seconds = time.perf_counter() - context.started
        path = getattr(scope.get("route"), "path", "none")
        if path not in PROBES:
            self._backend.metrics.observe_http(path, scope["method"], context.status, seconds)
        answer = context.answer
        worth_it = answer is not None or context.status >= 400
        level = logging.INFO if worth_it and scope["path"] not in OPEN_PATHS else logging.DEBUG
        tell(self._backend, scope, context, level)


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""
