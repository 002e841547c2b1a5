from __future__ import annotations

import msgspec
import pytest
from starlette.exceptions import HTTPException

from maestrale.api.context import RequestContext
from maestrale.api.dialects import DIALECTS
from maestrale.api.errors import as_api_error, error_response
from maestrale.api.http.body import decode
from maestrale.api.openai.schemas import ChatRequest
from maestrale.api.validation import of_validation
from maestrale.errors import (
    EngineDied,
    EngineError,
    InvalidRequest,
    ModelError,
    Unavailable,
    quoted,
)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{}", "messages", "missing_field"),
        (b'{"zork":1}', "zork", "unknown_field"),
        (b'{"messages":[{"role":"user","a":1}]}', "messages[0].a", "unknown_field"),
        (b'{"messages":[{}]}', "messages[0].role", "missing_field"),
        (b'{"messages":[],"n":"x"}', "messages", "invalid_value"),
        (b"[]", None, "invalid_value"),
        (b"{", None, "invalid_json"),
    ],
)
def test_the_field_is_named(body: bytes, param: str | None, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(body, ChatRequest)
    assert (caught.value.at and str(caught.value.at)) == param
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (b'{"messages":[{"role":"User"}]}', "'assistant', 'developer', 'system', 'tool', 'user'"),
        (
            b'{"messages":[{"role":"user"}],"response_format":{"type":"regex"}}',
            "'json_object', 'json_schema', 'text'",
        ),
    ],
)
def test_what_a_field_can_be_is_told(body: bytes, values: str) -> None:
    with pytest.raises(InvalidRequest, match=f"It can be {values}."):
        decode(body, ChatRequest)


def test_a_clients_long_text_is_not_repeated_whole() -> None:
    wrong = msgspec.ValidationError(f"Object contains unknown field `{'x' * 5000}`")
    error = of_validation(wrong, ChatRequest)
    assert len(error.message) < 200
    assert quoted("short") == "short"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EngineDied("gone"), 503),
        (EngineError("bad"), 500),
        (ModelError("bad"), 500),
        (ZeroDivisionError("secret"), 500),
        (HTTPException(404), 404),
        (HTTPException(405), 405),
        (HTTPException(400), 400),
        (HTTPException(502), 500),
    ],
)
def test_every_exception_has_an_answer(error: Exception, status: int) -> None:
    answer = as_api_error(error, "/path")
    assert answer.status == status
    assert "secret" not in answer.message


def test_headers_of_errors() -> None:
    context = RequestContext("req-1", DIALECTS.at("/"))
    assert error_response(Unavailable("x", retry_after=3), context).headers["retry-after"] == "3"
    not_allowed = as_api_error(HTTPException(405), "/path", {"POST", "GET"})
    assert error_response(not_allowed, context).headers["allow"] == "GET, POST"
