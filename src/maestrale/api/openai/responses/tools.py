"""The tools of a Responses body: functions, alone or in namespaces.

A namespace is a group of functions, which its client knows by two names. To the model and to the
chat service such a function is one of its name with the namespace's before it.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Raw, Struct

from maestrale.api.openai.responses.schemas import (
    AllowedTools,
    FunctionTool,
    NamedTool,
    NamespaceTool,
    ResponsesRequest,
)
from maestrale.api.validation import decoded_part, type_of
from maestrale.chat.options import TOOLS
from maestrale.chat.tools import (
    MAX_TOOLS,
    Choice,
    check_names,
    check_tools_size,
    tool_spec,
    tool_use,
)
from maestrale.errors import InvalidRequest, Location, Sent, UnsupportedParameter, quoted
from maestrale.prompt.tools.base import ToolSpec, ToolUse

BUILT_IN = "the server runs no tools of its own; only functions that the client runs"


class Function(Struct, frozen=True):
    """One function: its place in the body, and the namespace that it is in."""

    raw: Raw
    at: Sent
    namespace: NamespaceTool | None = None


def full_name(namespace: str | None, name: str) -> str:
    """What the model calls a function."""
    return name if namespace is None else f"{namespace}__{name}"


def read_tool_use(body: ResponsesRequest) -> ToolUse | None:
    """What the model may do with the tools; None when it may call none. Raises: InvalidRequest."""
    tools = body.tools or []
    check_tools_size(sum(len(bytes(tool)) for tool in tools))
    functions = list(_functions(tools))
    if len(functions) > MAX_TOOLS:
        raise InvalidRequest(
            f"There are {len(functions)} functions; up to {MAX_TOOLS} are allowed.",
            at=Sent("tools"),
        )
    try:
        specs = check_names([_tool(index, each) for index, each in enumerate(functions)])
    except InvalidRequest as error:
        if error.at is not None and error.at[:1] == TOOLS and not isinstance(error.at, Sent):
            _, index, *inside = error.at
            error.at = functions[int(index)].at.at(*inside)
        raise
    parallel = body.parallel_tool_calls is not False
    return tool_use(specs, _choice(body.tool_choice), parallel=parallel)


def namespaces_of(tools: Sequence[Raw] | None) -> dict[str, tuple[str, str]]:
    """Of functions in namespaces: what the model calls them → the namespace, and their name there.

    Raises: InvalidRequest, UnsupportedParameter.
    """
    found = {}
    for each in _functions(tools or ()):
        if each.namespace is not None:
            space, name = each.namespace.name, decoded_part(each.raw, FunctionTool, each.at).name
            found[full_name(space, name)] = (space, name)
    return found


def places_of(tools: Sequence[Raw] | None) -> dict[Location, Sent]:
    """Where each function is in the body. Raises: InvalidRequest, UnsupportedParameter."""
    return {TOOLS.at(index): each.at for index, each in enumerate(_functions(tools or ()))}


def _functions(tools: Sequence[Raw]) -> Iterator[Function]:
    for index, raw in enumerate(tools):
        at = Sent("tools", index)
        if type_of(raw, at) != "namespace":
            yield Function(raw, at)
            continue
        namespace = decoded_part(raw, NamespaceTool, at)
        for place, inner in enumerate(namespace.tools):
            yield Function(inner, at.at("tools", place), namespace)


def _tool(index: int, function: Function) -> ToolSpec:
    raw, at, namespace = function.raw, function.at, function.namespace
    kind = type_of(raw, at)
    if kind not in (None, "function"):
        raise UnsupportedParameter(
            f"A tool of type '{quoted(kind)}' is not supported: {BUILT_IN}.", at=at.at("type")
        )
    tool: FunctionTool = decoded_part(raw, FunctionTool, at)
    for name in ("defer_loading", "runs_async"):
        if getattr(tool, name):
            field = "async" if name == "runs_async" else name
            raise UnsupportedParameter(
                f"'{field}' is not supported: all tools are in the prompt, and called there.",
                at=at.at(field),
            )
    told = [tool.description] if namespace is None else [namespace.description, tool.description]
    return tool_spec(
        index,
        full_name(None if namespace is None else namespace.name, tool.name),
        bytes(tool.parameters),
        description="\n\n".join(filter(None, told)) or tool.description,
        strict=bool(tool.strict),
    )


def _choice(raw: Raw) -> Choice:
    """What `tool_choice` says. Raises: InvalidRequest, UnsupportedParameter."""
    at = Sent("tool_choice")
    said = decoded_part(raw, Any, at)
    if said in (None, "auto"):
        return Choice()
    if said == "none":
        return Choice(forbidden=True)
    if said == "required":
        return Choice(required=True)
    if not isinstance(said, dict):
        raise InvalidRequest(
            "'tool_choice' must be 'none', 'auto', 'required' or an object naming a tool.", at=at
        )
    kind = said.get("type")
    if kind == "function":
        named: NamedTool = decoded_part(raw, NamedTool, at)
        # One that is named is called once: a model that likes to repeat itself would go on.
        return Choice(required=True, names=(named.name,), once=True)
    if kind == "allowed_tools":
        for index, tool in enumerate(typing.cast("list[Any]", said.get("tools") or [])):
            _refuse_built_in(tool, at.at("tools", index))
        allowed: AllowedTools = decoded_part(raw, AllowedTools, at)
        names = tuple(tool.name for tool in allowed.tools)
        return Choice(required=allowed.mode == "required", names=names)
    _refuse_built_in(said, at)
    raise InvalidRequest("'tool_choice' is an object with a 'type'.", at=at.at("type"))


def _refuse_built_in(named: Any, at: Sent) -> None:
    """Raises: UnsupportedParameter for a tool of the server's own."""
    kind = named.get("type") if isinstance(named, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise UnsupportedParameter(
            f"'{at}' asks for '{quoted(kind)}': {BUILT_IN}.", at=at.at("type")
        )
