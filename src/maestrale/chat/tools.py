"""The tools of a request, in no API's words: checked, bounded, and which of them may be called."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from maestrale.chat.options import TOOLS
from maestrale.errors import InvalidRequest, Location, quoted
from maestrale.prompt.messages import Tool
from maestrale.prompt.tools.base import ToolSpec, ToolUse

MAX_TOOLS = 128
MAX_PARAMETERS_BYTES = 64 * 1024  # of one tool's schema
MAX_TOOLS_BYTES = 192 * 1024  # of all of them together
MAX_NAME_CHARS = 64
TOOL_CHOICE = Location("tool_choice")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class Choice(Struct, frozen=True, kw_only=True):
    """What the model may do: call a tool if it likes to; not at all; or it must.

    `names` are those that may be called; None: all. `once`: one call ends the answer.
    """

    forbidden: bool = False
    required: bool = False
    names: tuple[str, ...] | None = None
    once: bool = False


def check_tools_size(size: int) -> None:
    """Raises: InvalidRequest where the tools have too many bytes together."""
    if size > MAX_TOOLS_BYTES:
        raise InvalidRequest(
            f"The tools have {size} bytes; up to {MAX_TOOLS_BYTES} are allowed.", at=TOOLS
        )


def tool_spec(
    index: int,
    name: str,
    parameters: bytes,
    *,
    description: str | None = None,
    written: Tool | None = None,
    strict: bool = False,
) -> ToolSpec:
    """The tool at `index`. `parameters` is the JSON schema of its arguments; null: it has none.

    `written`: how prompts are to show it, where that isn't made of its name and description.
    Raises: InvalidRequest naming what is wrong with it.
    """
    at = TOOLS.at(index)
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"The name of a function has 1 to {MAX_NAME_CHARS} letters, digits, '_' or '-'.",
            at=at.at("name"),
        )
    schema = _parameters(parameters, at.at("parameters"))
    definition = written
    if definition is None:
        function: dict[str, Any] = {"name": name}
        if description is not None:
            function["description"] = description
        if schema is not None:
            function["parameters"] = msgspec.json.decode(schema)
        definition = {"type": "function", "function": function}
    if schema is None:
        schema = json.dumps(_NO_PARAMETERS)
        definition["function"]["parameters"] = _NO_PARAMETERS
    return ToolSpec(name=name, definition=definition, parameters=schema, strict=strict)


def check_names(specs: Sequence[ToolSpec]) -> tuple[ToolSpec, ...]:
    """The tools, no two of one name. Raises: InvalidRequest."""
    seen: set[str] = set()
    for index, spec in enumerate(specs):
        if spec.name in seen:
            raise InvalidRequest(
                f"There are two tools called '{spec.name}'.", at=TOOLS.at(index, "name")
            )
        seen.add(spec.name)
    return tuple(specs)


def tool_use(specs: Sequence[ToolSpec], choice: Choice, *, parallel: bool) -> ToolUse | None:
    """What the model may do with the tools; None when it may call none. Raises: InvalidRequest."""
    if not specs and (choice.required or choice.names is not None):
        raise InvalidRequest(
            TOOL_CHOICE, " asks for a tool, but the request has no tools.", at=TOOL_CHOICE
        )
    known = [spec.name for spec in specs]
    for name in choice.names or ():
        if name not in known:
            raise InvalidRequest(
                *(TOOL_CHOICE, f" names '{quoted(name)}', which is none of the tools."),
                at=TOOL_CHOICE,
            )
    if not specs or choice.forbidden:
        return None
    allowed = known if choice.names is None else [name for name in known if name in choice.names]
    return ToolUse(
        tools=tuple(specs),
        callable=tuple(allowed),
        required=choice.required,
        parallel=parallel and not choice.once,
    )


def _parameters(raw: bytes, at: Location) -> str | None:
    """The schema's text, if there is one. Raises: InvalidRequest."""
    if raw == b"null":
        return None
    if len(raw) > MAX_PARAMETERS_BYTES:
        raise InvalidRequest(
            f"The schema has {len(raw)} bytes; up to {MAX_PARAMETERS_BYTES} are allowed.", at=at
        )
    schema = msgspec.json.decode(raw)
    if not isinstance(schema, dict):
        raise InvalidRequest("The parameters must be a JSON schema, an object.", at=at)
    if schema.get("type", "object") != "object":
        raise InvalidRequest("The parameters must be of type 'object'.", at=at.at("type"))
    return raw.decode()
