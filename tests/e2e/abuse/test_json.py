"""Bodies that are no JSON, or not the JSON that is asked for: the contract tests' table."""

from __future__ import annotations

import time

import pytest

from api_app import check_error
from hostile_bodies import BAD_JSON

from .conftest import Target

pytestmark = pytest.mark.model

OTHERS = {
    "a key without a value": b'{"messages"}',
    "a comment": b'{"messages":[] /* none */}',
    "single quotes": b"{'messages':[]}",
    "a NUL": b'{"messages":[{"role":"user","content":"\x00"}]}',
    "an overlong encoding of NUL": b'{"messages":[{"role":"user","content":"\xc0\x80"}]}',
    "UTF-32": '{"messages":[]}'.encode("utf-32"),
    "an unfinished escape": b'{"messages":[{"role":"user","content":"\\u12"}]}',
    "a number with a plus": b'{"messages":[{"role":"user","content":"x"}],"n":+1}',
    "octal": b'{"messages":[{"role":"user","content":"x"}],"n":01}',
    "a float of 100,000 digits": b'{"messages":[{"role":"user","content":"x"}],"temperature":0.'
    + b"1" * 100_000
    + b"e999999}",
    "objects 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "depth 100,000 in a schema": b'{"messages":[{"role":"user","content":"x"}],"response_format":'
    b'{"type":"json_schema","json_schema":{"schema":' + b"[" * 100_000 + b"]" * 100_000 + b"}}}",
    "depth 10,000 in a schema": b'{"messages":[{"role":"user","content":"x"}],"response_format":'
    b'{"type":"json_schema","json_schema":{"schema":'
    + b'{"items":' * 5_000
    + b"{}"
    + b"}" * 5_000
    + b"}}}",
    "two documents": b'{"messages":[]}{"messages":[]}',
    "only blanks": b" " * 1_000_000,
}


@pytest.mark.parametrize("body", (BAD_JSON | OTHERS).values(), ids=BAD_JSON | OTHERS)
def test_bad_json(target: Target, body: bytes) -> None:
    began = time.monotonic()
    check_error(target.post(body), 400)
    assert time.monotonic() - began < 30
