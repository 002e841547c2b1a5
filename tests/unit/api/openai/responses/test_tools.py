"""Functions of a Responses body, in namespaces and out of them."""

from __future__ import annotations

import msgspec
import pytest

from maestrale.api.openai.responses.schemas import ResponsesRequest
from maestrale.api.openai.responses.tools import namespaces_of, places_of, read_tool_use
from maestrale.chat.options import TOOLS
from maestrale.errors import InvalidRequest, Sent


def function(name: str, told: str | None = None) -> dict[str, object]:
    return {"type": "function", "name": name, "description": told}


def space(*tools: dict[str, object]) -> dict[str, object]:
    return {"type": "namespace", "name": "sky", "description": "Of the sky.", "tools": list(tools)}


def read(*tools: dict[str, object]) -> ResponsesRequest:
    return msgspec.convert(
        {"tools": [msgspec.Raw(msgspec.json.encode(tool)) for tool in tools]}, ResponsesRequest
    )


def test_a_function_in_a_namespace_bears_its_name_and_what_it_is_about() -> None:
    body = read(space(function("look", "Look up."), function("wait")), function("look"))
    use = read_tool_use(body)
    assert use is not None
    assert [(tool.name, tool.definition["function"].get("description")) for tool in use.tools] == [
        ("sky__look", "Of the sky.\n\nLook up."),
        ("sky__wait", "Of the sky."),
        ("look", None),
    ]
    assert namespaces_of(body.tools) == {
        "sky__look": ("sky", "look"),
        "sky__wait": ("sky", "wait"),
    }
    assert places_of(body.tools) == {
        TOOLS.at(0): Sent("tools", 0, "tools", 0),
        TOOLS.at(1): Sent("tools", 0, "tools", 1),
        TOOLS.at(2): Sent("tools", 1),
    }


def test_what_is_wrong_is_told_by_its_place_in_the_body() -> None:
    with pytest.raises(InvalidRequest) as told:
        read_tool_use(read(space(function("a")), space(function("b"), function("b"))))
    assert told.value.at == Sent("tools", 1, "tools", 1, "name")


def test_there_are_no_more_functions_for_being_in_namespaces() -> None:
    many = [space(*(function(f"f{n}") for n in range(65))) | {"name": name} for name in ("a", "b")]
    with pytest.raises(InvalidRequest, match="There are 130 functions"):
        read_tool_use(read(*many))
