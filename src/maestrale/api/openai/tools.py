"""Tools in a request: OpenAI's and Mistral's shapes, checked and bounded, as `ToolUse`."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from maestrale.api.errors import of_validation, quoted
from maestrale.errors import InvalidRequest, UnsupportedParameter
from maestrale.prompt.messages import ToolCall
from maestrale.prompt.tools.base import ToolSpec, ToolUse

MAX_TOOLS = 128
MAX_CALLS_IN_MESSAGE = 128
MAX_PARAMETERS_BYTES = 64 * 1024  # of one tool's schema
MAX_TOOLS_BYTES = 192 * 1024  # of all of them together
MAX_NAME_CHARS = 64
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}

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


def tool_use(tools: list[Raw] | None, choice: Raw, parallel: bool | None) -> ToolUse | None:
    """What the model may do with the request's tools; None when it may call none.

    Raises: InvalidRequest, UnsupportedParameter naming the field.
    """
    specs = read_tools(tools or [])
    names = tuple(spec.name for spec in specs)
    required, allowed, one = _choice(choice, names)
    if not specs or not allowed:
        return None
    return ToolUse(
        tools=specs,
        callable=allowed,
        required=required,
        parallel=parallel is not False and not one,
    )


def read_tools(tools: list[Raw]) -> tuple[ToolSpec, ...]:
    """Raises: InvalidRequest, UnsupportedParameter naming the tool."""
    size = sum(len(bytes(tool)) for tool in tools)
    if size > MAX_TOOLS_BYTES:
        raise InvalidRequest(
            f"The tools have {size} bytes; up to {MAX_TOOLS_BYTES} are allowed.", param="tools"
        )
    specs = []
    seen: set[str] = set()
    for index, raw in enumerate(tools):
        spec = _read_tool(raw, f"tools[{index}]")
        if spec.name in seen:
            raise InvalidRequest(
                f"There are two tools called '{spec.name}'.", param=f"tools[{index}].function.name"
            )
        seen.add(spec.name)
        specs.append(spec)
    return tuple(specs)


def _read_tool(raw: Raw, param: str) -> ToolSpec:
    try:
        # Only once for the prompt: it gets the tool in the client's own order of keys.
        written = msgspec.json.decode(raw)
        kind = written.get("type") if isinstance(written, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise UnsupportedParameter(
                f"A tool of type '{quoted(kind)}' is not supported: the server runs no tools of "
                "its own; only functions that the client runs.",
                param=f"{param}.type",
            )
        tool = msgspec.json.decode(raw, type=ToolBody)
    except msgspec.ValidationError as error:
        inner = of_validation(error, ToolBody)
        where = f"{param}.{inner.param}" if inner.param else param
        raise InvalidRequest(f"{param}: {inner.message}", param=where, code=inner.code) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{param} is not valid: {quoted(str(error))}.", param=param) from error
    function = tool.function
    if not _NAME.fullmatch(function.name):
        raise InvalidRequest(
            f"The name of a function has 1 to {MAX_NAME_CHARS} letters, digits, '_' or '-'.",
            param=f"{param}.function.name",
        )
    definition = _definition(written)
    parameters = _parameters(function.parameters, f"{param}.function.parameters")
    if parameters is None:
        parameters = json.dumps(_NO_PARAMETERS)
        definition["function"]["parameters"] = _NO_PARAMETERS
    return ToolSpec(
        name=function.name,
        definition=definition,
        parameters=parameters,
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


def _parameters(raw: Raw, param: str) -> str | None:
    """The schema's text, if there is one. Raises: InvalidRequest."""
    text = bytes(raw)
    if text == b"null":
        return None
    if len(text) > MAX_PARAMETERS_BYTES:
        raise InvalidRequest(
            f"The schema has {len(text)} bytes; up to {MAX_PARAMETERS_BYTES} are allowed.",
            param=param,
        )
    schema = msgspec.json.decode(text)
    if not isinstance(schema, dict):
        raise InvalidRequest("The parameters must be a JSON schema, an object.", param=param)
    if schema.get("type", "object") != "object":
        raise InvalidRequest("The parameters must be of type 'object'.", param=f"{param}.type")
    return text.decode()


def _choice(raw: Raw, names: tuple[str, ...]) -> tuple[bool, tuple[str, ...], bool]:
    """Whether a call is required, the tools that may be called, and whether it is one call.

    Raises: InvalidRequest.
    """
    text = bytes(raw).strip()
    if text in (b"null", b'"auto"'):
        return False, names, False
    if text == b'"none"':
        return False, (), False
    if text in (b'"any"', b'"required"'):
        if not names:
            raise _no_tools()
        return True, names, False
    if not text.startswith(b"{"):
        raise InvalidRequest(
            "'tool_choice' must be 'none', 'auto', 'any', 'required' or an object naming a tool.",
            param="tool_choice",
        )
    if not names:
        raise _no_tools()
    try:
        choice = msgspec.json.decode(text, type=ChoiceBody)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(
            f"'tool_choice' is not valid: {quoted(str(error))}.", param="tool_choice"
        ) from error
    if choice.type == "allowed_tools":
        if choice.allowed_tools is None or not choice.allowed_tools.tools:
            raise InvalidRequest("'tool_choice' allows no tool.", param="tool_choice.allowed_tools")
        wanted = [tool.function.name for tool in choice.allowed_tools.tools]
        required = choice.allowed_tools.mode == "required"
    elif choice.function is None:
        raise InvalidRequest("'tool_choice' names no function.", param="tool_choice.function")
    else:
        wanted, required = [choice.function.name], True
    for name in wanted:
        if name not in names:
            raise InvalidRequest(
                f"'tool_choice' names '{quoted(name)}', which is none of the tools.",
                param="tool_choice",
            )
    # A function that is named is called once: a model that likes to repeat itself would go on.
    return required, tuple(name for name in names if name in wanted), choice.function is not None


def _no_tools() -> InvalidRequest:
    return InvalidRequest(
        "'tool_choice' asks for a tool, but the request has no tools.", param="tool_choice"
    )


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
