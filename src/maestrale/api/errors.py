"""Every error, from every layer, in the one shape that both SDKs parse."""

from __future__ import annotations

import http
import re

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from maestrale.api.allowed import allowed_at
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
)

MAX_QUOTED = 100  # characters of a client's text repeated in an error

_WHERE = re.compile(r"^(?P<what>.*) - at `(?P<path>\$.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>.*)`$", re.DOTALL)


class ClientDisconnected(Exception):
    """The client is gone, or reads nothing: whatever ran for it is aborted; nobody is answered."""


def error_response(error: ApiError) -> Response:
    """The HTTP answer to an error."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="maestrale"'
    if isinstance(error, MethodNotAllowed) and error.allow:
        headers["allow"] = error.allow
    return Response(
        msgspec.json.encode(error.body()),
        status_code=error.status,
        headers=headers,
        media_type="application/json",
    )


def as_api_error(error: Exception, path: str = "") -> ApiError:
    """What a client is told about any exception: never a traceback, never a path of ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return _of_router(error, path)
    if isinstance(error, EngineDied):
        return Unavailable(
            f"The engine stopped while it worked on this request: {error}",
            code="engine_died",
            retry_after=2,
        )
    if isinstance(error, ConstraintError):  # vetted, and yet it led nowhere
        return InvalidRequest(str(error), param="response_format")
    if isinstance(error, EngineError):
        return ServerFailure(f"The engine could not run this request: {error}", code="engine_error")
    if isinstance(error, MaestraleError):
        return ServerFailure(str(error))
    return ServerFailure(
        "Something went wrong in the server. The log has the details under this answer's "
        "x-request-id."
    )


def of_validation(error: msgspec.ValidationError, type_: type[msgspec.Struct]) -> InvalidRequest:
    """A body of valid JSON that is not `type_`, what the route takes; `param` names the field."""
    text = str(error)
    where = _WHERE.match(text)
    what, path = (where["what"], where["path"]) if where else (text, "$")
    path = path.removeprefix("$").removeprefix(".")
    unknown = _UNKNOWN.match(what)
    missing = _MISSING.match(what)
    if unknown or missing:
        field = (unknown or missing)["field"]  # type: ignore[index]
        param = quoted(f"{path}.{field}" if path else field)
        if unknown:
            return InvalidRequest(f"unknown field '{param}'", param=param, code="unknown_field")
        return InvalidRequest(f"'{param}' is required.", param=param, code="missing_field")
    if not path:
        return InvalidRequest(f"The body must be a JSON object: {what}.")
    param = quoted(path)
    allowed = allowed_at(type_, path) if what.startswith("Invalid enum value") else ()
    choice = f" It can be {', '.join(map(repr, allowed))}." if allowed else ""
    return InvalidRequest(f"'{param}' is not valid: {quoted(what)}.{choice}", param=param)


def quoted(text: str) -> str:
    """A client's own text, short enough to be repeated to it."""
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "…"


def _of_router(error: HTTPException, path: str) -> ApiError:
    if error.status_code == 404:
        return NotFound(f"There is nothing at {quoted(path)}. See /docs for what there is.")
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"This path takes {allow or 'other methods'}.", allow=allow)
    if error.status_code < 500:
        return InvalidRequest(http.HTTPStatus(error.status_code).phrase)
    return ServerFailure(http.HTTPStatus(error.status_code).phrase)
