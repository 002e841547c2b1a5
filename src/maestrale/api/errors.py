"""Every error, from every layer, as an `ApiError`, and as the answer that its dialect spells."""

from __future__ import annotations

import http
from collections.abc import Collection

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from maestrale.api.context import RequestContext
from maestrale.api.dialect import Dialect, Name
from maestrale.chat.options import CONSTRAINT
from maestrale.errors import (
    ApiError,
    ConstraintError,
    EngineDied,
    EngineError,
    InvalidRequest,
    MaestraleError,
    MethodNotAllowed,
    NotFound,
    ServerFailure,
    Unavailable,
    quoted,
)


def error_response(error: ApiError, context: RequestContext) -> Response:
    """The HTTP answer to an error, in the words of the request's dialect."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="maestrale"'
    if isinstance(error, MethodNotAllowed) and error.allow:
        headers["allow"] = error.allow
    return Response(
        error_body(error, context),
        status_code=context.dialect.status(error),
        headers=headers,
        media_type="application/json",
    )


def error_body(error: ApiError, context: RequestContext) -> bytes:
    """What an error says, in the words of the request's dialect."""
    return spelled(error, context.dialect, context.name, context.id)


def spelled(error: ApiError, dialect: Dialect, name: Name, request_id: str = "") -> bytes:
    """The body of an error in a dialect, where `name` is what is called what."""
    at = None if error.at is None else name(error.at)
    return msgspec.json.encode(dialect.error(error, error.told(name), at, request_id))


def as_api_error(error: Exception, path: str = "", methods: Collection[str] = ()) -> ApiError:
    """What a client is told about any exception: never a traceback, never a path of ours.

    `methods`: those that the path takes.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return _of_router(error, path, methods)
    if isinstance(error, EngineDied):
        return Unavailable(
            f"The engine stopped while it worked on this request: {error}",
            code="engine_died",
            retry_after=2,
        )
    if isinstance(error, ConstraintError):  # vetted, and yet it led nowhere
        return InvalidRequest(str(error), at=CONSTRAINT)
    if isinstance(error, EngineError):
        return ServerFailure(f"The engine could not run this request: {error}", code="engine_error")
    if isinstance(error, MaestraleError):
        return ServerFailure(str(error))
    return ServerFailure(
        "Something went wrong in the server. The log has the details under this answer's "
        "x-request-id."
    )


def _of_router(error: HTTPException, path: str, methods: Collection[str]) -> ApiError:
    if error.status_code == 404:
        return NotFound(f"There is nothing at {quoted(path)}. See /docs for what there is.")
    if error.status_code == 405:
        allow = ", ".join(sorted(methods))
        return MethodNotAllowed(f"This path takes {allow or 'other methods'}.", allow=allow)
    if error.status_code < 500:
        return InvalidRequest(http.HTTPStatus(error.status_code).phrase)
    return ServerFailure(http.HTTPStatus(error.status_code).phrase)
