"""Tools in a request, in OpenAI's and Mistral's shapes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from maestrale.api.validation import decoded, of_validation
from maestrale.chat.tools import Choice, check_names, check_tools_size, tool_spec, tool_use
from maestrale.errors import InvalidRequest, Sent, UnsupportedParameter, quoted
from maestrale.prompt.messages import ToolCall
from maestrale.prompt.tools.base import ToolSpec, ToolUse

MAX_CALLS_IN_MESSAGE = 128

Name = Annotated[str, Meta(max_length=256)]


class Body(Struct, kw_only=True, forbid_unknown_fields=True):
    """As in schemas.py: strict, and without unknown fields."""


class FunctionBody(Body, kw_only=True):
    name: str
    description: str | None = None
    parameters: Raw = msgspec.field(default_factory=lambda: Raw(b"null"))
    strict: bool | None = None


class ToolBody(Body, kw_only=True):
    """One entry of `tools`."""

    type: str = "function"
    function: FunctionBody


_TOOL = msgspec.json.Decoder(ToolBody)


class CalledFunction(Body, kw_only=True):
    name: Name
    arguments: str | dict[str, Any] | None = None


class CallBody(Body, kw_only=True):
    """One of an assistant's `tool_calls` in the conversation; Mistral's client adds `index`."""

    function: CalledFunction
    id: Name | None = None
    type: Literal["function"] | None = None
    index: int | None = None


class FunctionName(Body, kw_only=True):
    name: str


class ChoiceBody(Body, kw_only=True):
    """An object as `tool_choice`: one function, or OpenAI's `allowed_tools`."""

    type: Literal["function", "allowed_tools"] = "function"
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class AllowedTools(Body, kw_only=True):
    mode: Literal["auto", "required"]
    tools: list[ToolName]


class ToolName(Body, kw_only=True):
    type: Literal["function"] = "function"
    function: FunctionName


def read_tool_use(tools: list[Raw] | None, choice: Raw, parallel: bool | None) -> ToolUse | None:
    """What the model may do with the request's tools; None when it may call none.

    Raises: InvalidRequest, UnsupportedParameter naming the field.
    """
    specs = read_tools(tools or [])
    return tool_use(specs, _choice(choice, bool(specs)), parallel=parallel is not False)


def read_tools(tools: list[Raw]) -> tuple[ToolSpec, ...]:
    """Raises: InvalidRequest, UnsupportedParameter naming the tool."""
    check_tools_size(sum(len(bytes(tool)) for tool in tools))
    return check_names([_read_tool(index, raw) for index, raw in enumerate(tools)])


def _read_tool(index: int, raw: Raw) -> ToolSpec:
    at = Sent("tools", index)
    try:
        # Only once for the prompt: it gets the tool in the client's own order of keys.
        written = msgspec.json.decode(raw)
        kind = written.get("type") if isinstance(written, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise UnsupportedParameter(
                f"A tool of type '{quoted(kind)}' is not supported: the server runs no tools of "
                "its own; only functions that the client runs.",
                at=at.at("type"),
            )
        tool: ToolBody = decoded(raw, ToolBody, _TOOL, at)
    except msgspec.ValidationError as error:
        inner = of_validation(error, ToolBody)
        where = at if inner.at is None else at.at(*inner.at)
        raise InvalidRequest(f"{at}: {inner.message}", at=where, code=inner.code) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{at} is not valid: {quoted(str(error))}.", at=at) from error
    function = tool.function
    return tool_spec(
        index,
        function.name,
        bytes(function.parameters),
        written=_definition(written),
        strict=bool(function.strict),
    )


def _definition(written: dict[str, Any]) -> dict[str, Any]:
    """The tool as the prompt has it: `strict` says how to decode, and nulls say nothing."""
    function = {
        key: value
        for key, value in written["function"].items()
        if key != "strict" and value is not None
    }
    typed = written if "type" in written else {"type": "function", **written}
    return {**typed, "function": function}


def _choice(raw: Raw, has_tools: bool) -> Choice:
    """What `tool_choice` says. Raises: InvalidRequest."""
    text = bytes(raw).strip()
    if text in (b"null", b'"auto"'):
        return Choice()
    if text == b'"none"':
        return Choice(forbidden=True)
    if text in (b'"any"', b'"required"'):
        return Choice(required=True)
    at = Sent("tool_choice")
    if not text.startswith(b"{"):
        raise InvalidRequest(
            "'tool_choice' must be 'none', 'auto', 'any', 'required' or an object naming a tool.",
            at=at,
        )
    if not has_tools:  # said before what is wrong with the object
        return Choice(required=True)
    try:
        choice = msgspec.json.decode(text, type=ChoiceBody)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"'tool_choice' is not valid: {quoted(str(error))}.", at=at) from error
    if choice.type == "allowed_tools":
        if choice.allowed_tools is None or not choice.allowed_tools.tools:
            raise InvalidRequest("'tool_choice' allows no tool.", at=at.at("allowed_tools"))
        names = tuple(tool.function.name for tool in choice.allowed_tools.tools)
        return Choice(
            required=choice.allowed_tools.mode == "required",
            names=names,
            once=choice.function is not None,
        )
    if choice.function is None:
        raise InvalidRequest("'tool_choice' names no function.", at=at.at("function"))
    # A function that is named is called once: a model that likes to repeat itself would go on.
    return Choice(required=True, names=(choice.function.name,), once=True)


def past_calls(calls: list[CallBody] | None) -> tuple[ToolCall, ...]:
    """The calls of an earlier turn, for the prompt."""
    return tuple(
        ToolCall(
            id=call.id or "",
            name=call.function.name,
            arguments=_arguments(call.function.arguments),
        )
        for call in calls or ()
    )


def _arguments(given: str | dict[str, Any] | None) -> str:
    if isinstance(given, str):
        return given or "{}"
    return json.dumps(given or {}, ensure_ascii=False)
