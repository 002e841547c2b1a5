"""Calls that are sure to be valid: the grammar of an answer that must, or may, call tools."""

from __future__ import annotations

from typing import Any

import msgspec

from maestrale.engines.base import Constraint
from maestrale.errors import InvalidRequest, Location
from maestrale.prompt.tools.base import (
    MAX_CALLS,
    CallSchema,
    Rules,
    ToolFormat,
    ToolSpec,
    ToolUse,
)

_CHILDREN = ("items", "additionalProperties")
_BESIDE = ("allOf", "anyOf", "oneOf", "$ref")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_MAPS = ("$defs", "definitions", "properties", "patternProperties")


def tool_constraint(form: ToolFormat, use: ToolUse, answer: Constraint | None) -> Constraint | None:
    """What decoding is constrained to; None when nothing needs to be.

    A call that is required, or of a strict tool, satisfies the tool's schema; `answer` is what
    an answer without calls must satisfy. Raises: InvalidRequest for a schema that is nested too
    deep, or that this format can't be held to.
    """
    if not constrains(use, answer):
        return None
    rules = tool_rules(form, use, answer)
    text = f"{rules.text}\nstart: answered"
    nested: tuple[tuple[str, Constraint], ...] = ()
    if answer is not None:
        text += "\ncontent: answer"
        nested = (("answer", answer),)
    return Constraint("grammar", text, rules.schemas, nested)


def constrains(use: ToolUse, answer: Constraint | None) -> bool:
    """Whether decoding must be constrained: a call must come, or must be valid if one comes."""
    return use.required or answer is not None or any(tool.strict for tool in use.candidates)


def tool_rules(form: ToolFormat, use: ToolUse, answer: Constraint | None) -> Rules:
    """Rules in which `answered` is an answer with calls, or without where it may be; what
    `answer` constrains stands in it as `content`. See `tool_constraint`.
    """
    calls = [
        CallSchema(
            tool.name,
            msgspec.json.decode(strict_schema(tool))
            if use.required or tool.strict
            else {"type": "object"},
        )
        for tool in use.candidates
    ]
    most = MAX_CALLS if use.parallel else 1
    free = not use.required and answer is None
    rules = form.rules(calls, most, text=free)
    answered = "free" if free else "calls" if use.required else "content | calls"
    return Rules(f"{rules.text}\nanswered: {answered}", rules.schemas)


def argument_constraints(use: ToolUse) -> list[tuple[int, Constraint]]:
    """Each enforced schema by itself, with its tool's place: to find which one is at fault."""
    return [
        (index, Constraint("json_schema", strict_schema(tool)))
        for index, tool in enumerate(use.tools)
        if tool.name in use.callable and (use.required or tool.strict)
    ]


def strict_schema(tool: ToolSpec) -> str:
    """The schema of a tool's arguments, in which only what it names may occur.

    A schema that says nothing of other properties would let the model make some up. Where
    several schemas hold at once it is left as it is: closing them would contradict.
    Raises: InvalidRequest.
    """
    try:
        schema = msgspec.json.decode(tool.parameters)
        schema = {"type": "object", **schema}
        if not _combines(schema):
            schema = _closed(schema)
        return msgspec.json.encode(schema).decode()
    except RecursionError as error:
        raise InvalidRequest(
            f"The parameters of the tool '{tool.name}' are nested too deep.", at=Location("tools")
        ) from error


def _combines(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_combines, schema))
    if not isinstance(schema, dict):
        return False
    several = schema.get("allOf")
    if isinstance(several, list) and len(several) > 1:
        return True
    if "properties" in schema and not schema.keys().isdisjoint(_BESIDE):
        return True
    return any(map(_combines, schema.values()))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    if isinstance(result.get("properties"), dict) and "patternProperties" not in result:
        result.setdefault("additionalProperties", False)
    for key in _CHILDREN:
        if isinstance(result.get(key), dict):
            result[key] = _closed(result[key])
    for key in _LISTS:
        if isinstance(result.get(key), list):
            result[key] = [_closed(each) for each in result[key]]
    for key in _MAPS:
        if isinstance(result.get(key), dict):
            result[key] = {name: _closed(each) for name, each in result[key].items()}
    return result
