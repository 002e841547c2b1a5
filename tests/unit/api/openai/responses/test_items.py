"""Items of the Responses API: read, kept, made into messages, dropped where there is no room."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from maestrale.api.openai.responses.items import (
    Item,
    messages_of,
    read_input,
    read_kept,
    references,
)
from maestrale.api.openai.responses.truncation import cuts, truncated
from maestrale.errors import InvalidRequest, Sent, UnsupportedParameter


def raws(*items: Any) -> list[msgspec.Raw]:
    return [msgspec.Raw(json.dumps(item).encode()) for item in items]


def read(*items: Any) -> tuple[Item, ...]:
    return read_input(raws(*items))


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def call(call_id: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": f"f{call_id}", "arguments": "{}"}


def gave(call_id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": "x"}


THOUGHT = {
    "type": "reasoning",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Hm"}],
}


def shapes(*items: Any) -> list[str]:
    """The messages, in short: role, text, calls."""
    return [
        f"{message.role}:{message.text}" + "".join(f"+{each.id}" for each in message.tool_calls)
        for message, _ in messages_of(None, read(*items))
    ]


def test_what_is_one_message() -> None:
    assert shapes(said("system", "a"), said("developer", "b"), said("user", "c")) == [
        *("system:a\n\nb", "user:c")
    ]
    assert shapes(THOUGHT, said("assistant", "a"), call("1"), call("2"), gave("1"), gave("2")) == [
        *("assistant:a+1+2", "tool:x", "tool:x")
    ]
    assert shapes(said("assistant", "a"), said("assistant", "b")) == ["assistant:a", "assistant:b"]
    assert shapes(call("1"), said("assistant", "a")) == ["assistant:+1", "assistant:a"]
    assert shapes(said("assistant", "a"), THOUGHT, call("1")) == ["assistant:a", "assistant:+1"]
    assert shapes(said("user", "a"), said("user", "b")) == ["user:a", "user:b"]
    assert shapes(said("user", "a"), said("system", "b")) == ["user:a", "system:b"]


def test_an_output_knows_the_name_of_its_function() -> None:
    placed = messages_of(None, read(call("1"), gave("1"), gave("2")))
    assert [message.name for message, _ in placed] == [None, "f1", None]


def test_messages_have_the_places_of_their_items() -> None:
    placed = messages_of("Be kind.", read(said("user", "a"), said("assistant", "b"), call("1")))
    assert [str(at) for _, at in placed] == ["instructions", "input[0]", "input[1]"]
    assert messages_of(None, read_input("Hello"))[0][1] == Sent("input")


def test_what_is_kept_reads_the_same() -> None:
    items = read(said("user", "a"), THOUGHT, said("assistant", "b"), call("1"), gave("1"))
    assert all(item.shown["id"] for item in items)
    kept = read_kept([msgspec.json.encode(item.shown) for item in items], Sent("there"))
    assert [item.shown for item in kept] == [item.shown for item in items]
    assert [item.text for item in kept] == [item.text for item in items]
    assert kept[1].thought == "Hm"
    assert {item.at for item in kept} == {Sent("there")}


def test_references() -> None:
    given = raws(
        {"type": "item_reference", "id": "m1"}, {"id": "m2"}, {**said("user", "a"), "id": "m3"}
    )
    assert references(given) == ["m1", "m2"]
    kept = {"m1": b'{"role": "user", "content": "kept"}', "m2": json.dumps(call("1")).encode()}
    assert [item.kind for item in read_input(given, kept)] == ["message", "call", "message"]
    assert references("text") == references(None) == []


def test_what_belongs_to_the_servers_tools_is_refused() -> None:
    with pytest.raises(UnsupportedParameter) as error:
        read({**call("1"), "caller": {"type": "program", "caller_id": "p"}})
    assert str(error.value.at) == "input[0].caller"
    read({**call("1"), "caller": {"type": "direct"}})


def test_a_call_in_a_namespace_keeps_it_and_is_one_name_to_the_model() -> None:
    (item,) = read({**call("1"), "namespace": "n"})
    assert item.call is not None
    assert item.call.name == f"n__{item.shown['name']}"
    assert item.shown["namespace"] == "n"


def test_a_type_of_null_is_that_of_a_message() -> None:
    assert read({**said("user", "a"), "type": None})[0].text == "a"
    with pytest.raises(InvalidRequest):
        read({**said("user", "a"), "type": 5})


CONVERSATION = [
    *(said("system", "s"), said("user", "a"), said("assistant", "b"), said("user", "c")),
    *(call("1"), gave("1"), call("2"), call("3"), gave("2"), gave("3"), said("assistant", "d")),
]


def texts(items: Any) -> str:
    return "".join(item.text or (item.call.id if item.call else "") for item in items)


def test_cuts_leave_whole_exchanges() -> None:
    assert [texts(left) for left in cuts(read(*CONVERSATION))] == [
        *("sabc1x23xxd", "sc1x23xxd", "sc23xxd", "scd")
    ]
    assert [texts(left) for left in cuts(read(said("assistant", "a")))] == ["a"]


@pytest.mark.anyio
@pytest.mark.parametrize("most", range(12))
async def test_no_more_is_cut_than_must_be(most: int) -> None:
    items = read(*CONVERSATION)

    async def fits(left: Any) -> bool:
        return len(left) <= most

    fitting = [left for left in cuts(items) if len(left) <= most]
    expected = fitting[0] if fitting else cuts(items)[-1]
    assert texts(await truncated(items, fits)) == texts(expected)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
