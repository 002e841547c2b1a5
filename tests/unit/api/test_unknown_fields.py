"""Unknown fields: the nearest known one is named, and what is left out is left out alone."""

from __future__ import annotations

import json

import msgspec
import pytest

from maestrale.api.anthropic.schemas import MessagesRequest
from maestrale.api.http.body import decode
from maestrale.api.openai.responses.schemas import FunctionTool, ResponsesRequest
from maestrale.api.openai.schemas import ChatRequest, CompletionRequest
from maestrale.api.unknown_fields import IgnoredFields, ignoring, nearest
from maestrale.api.validation import decoded_part
from maestrale.errors import InvalidRequest, Sent

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("type_", "at", "known"),
    [
        (ChatRequest, Sent("temprature"), "temperature"),
        (ChatRequest, Sent("max_token"), "max_tokens"),
        (MessagesRequest, Sent("stop"), "stop_sequences"),
        (ChatRequest, Sent("messages", 0, "contents"), "content"),
        (ChatRequest, Sent("messages", 3, "content", 0, "txt"), "text"),
        (ChatRequest, Sent("response_format", "json_schema", "shema"), "schema"),
        (ChatRequest, Sent("options", "num_predct"), "num_predict"),
        (CompletionRequest, Sent("sufix"), "suffix"),
        (ResponsesRequest, Sent("max_ouput_tokens"), "max_output_tokens"),
        (ResponsesRequest, Sent("text", "formt"), "format"),
        (MessagesRequest, Sent("stop_sequence"), "stop_sequences"),
        (ChatRequest, Sent("zork"), None),
        (ChatRequest, Sent("zork", "temprature"), None),
        (ChatRequest, Sent("temprature" * 1000), None),
        (ChatRequest, Sent("messages", 0), None),
    ],
)
def test_the_nearest_known_field(type_: type[msgspec.Struct], at: Sent, known: str | None) -> None:
    assert nearest(type_, at) == known


def test_the_error_names_it_at_its_place() -> None:
    body = {"messages": [{"role": "user", "contnet": "x"}]}
    with pytest.raises(InvalidRequest) as caught:
        decode(json.dumps(body).encode(), ChatRequest)
    assert caught.value.at == Sent("messages", 0, "contnet")
    assert "messages[0].content" in caught.value.message
    assert caught.value.code == "unknown_field"
    with pytest.raises(InvalidRequest, match="nearest known one is 'name'") as inner:
        decoded_part(msgspec.Raw(b'{"type":"function","nam":"x"}'), FunctionTool, Sent("tools", 1))
    assert inner.value.at == Sent("tools", 1, "nam")


def test_they_are_left_out_and_told() -> None:
    body = {
        "zork": {"a": [1]},
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}], "z": 2}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"zork": 1}, "q": 0}},
        "logit_bias": {"5": 1},
        "metadata": {"anything": {"goes": 1}},
    }
    fields = IgnoredFields()
    with ignoring(fields):
        read = decode(json.dumps(body).encode(), ChatRequest)
    assert fields.header == (
        "zork, messages[0].content[0].y, messages[0].z, response_format.json_schema.q"
    )
    assert read.logit_bias == {"5": 1}
    assert msgspec.json.decode(read.metadata) == {"anything": {"goes": 1}}
    assert read.response_format is not None
    assert read.response_format.json_schema is not None
    assert msgspec.json.decode(read.response_format.json_schema.schema) == {"zork": 1}


def test_what_is_known_stays_as_it_was_written() -> None:
    raw = b' {"messages": [{"role":"user","content":"\\u00e9\\n"}], "seed": 9223372036854775807,'
    raw += b'"q":1,"temperature": 0.10000000000000001,'
    raw += b'"metadata": {"n": 1e2, "big": 123456789012345678901}}'
    fields = IgnoredFields()
    with ignoring(fields):
        read = decode(raw, ChatRequest)
    assert read.messages[0].content == "é\n"
    assert read.seed == 9223372036854775807
    assert bytes(read.metadata) == b'{"n": 1e2, "big": 123456789012345678901}'
    assert fields.header == "q"


def test_what_is_wrong_beside_it_is_still_an_error() -> None:
    body = {"messages": MESSAGES, "zork": 1, "temperature": "hot"}
    with ignoring(IgnoredFields()), pytest.raises(InvalidRequest) as caught:
        decode(json.dumps(body).encode(), ChatRequest)
    assert caught.value.at == Sent("temperature")
    with ignoring(IgnoredFields()), pytest.raises(InvalidRequest) as caught:
        decode(b'{"zork": 1}', ChatRequest)
    assert caught.value.at == Sent("messages")
    with pytest.raises(InvalidRequest) as caught:  # outside of it, all is as before
        decode(json.dumps({"messages": MESSAGES, "zork": 1}).encode(), ChatRequest)
    assert caught.value.code == "unknown_field"


def test_parts_that_are_read_later_have_their_place() -> None:
    fields = IgnoredFields()
    with ignoring(fields):
        tool = decoded_part(
            msgspec.Raw(b'{"type":"function","name":"f","q":1}'), FunctionTool, Sent("tools", 2)
        )
    assert tool.name == "f"
    assert fields.header == "tools[2].q"


def test_the_header_is_short_and_safe() -> None:
    body = {"messages": MESSAGES, "a\r\nset-cookie: x": 1, "é": 2, "n" * 500: 3}
    body |= {f"field{number}": 0 for number in range(100_000)}
    fields = IgnoredFields()
    with ignoring(fields):
        decode(json.dumps(body).encode(), ChatRequest)
    header = fields.header
    assert header.startswith("a??set-cookie??x, ?, nnnn")
    assert header.isascii()
    assert header.endswith("and 99987 more")
    assert len(header) < 600
    assert not IgnoredFields()
