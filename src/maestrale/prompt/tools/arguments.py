"""Arguments that are no JSON object: written one by one, or as Python or Gemma write them.

What a value means follows from the tool's schema: text without quotes is a number or a list
where the schema wants one, and text where it wants text.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from maestrale.errors import InvalidRequest, Location
from maestrale.prompt.tools.base import CallSchema

MAX_PYTHON = 64 * 1024  # characters of one call's arguments
# Keywords that only describe: beside them a value is held to its type alone.
_NOTES = {"title", "description", "default", "examples", "deprecated", "$comment", "type"}
_WHOLE = ("allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "propertyNames",
          "dependentRequired", "dependentSchemas", "dependencies", "minProperties",
          "maxProperties", "unevaluatedProperties", "enum", "const")  # fmt: skip
_TYPES: dict[type, str] = {
    bool: "boolean", int: "integer", float: "number", str: "string",
    list: "array", dict: "object", type(None): "null",
}  # fmt: skip


class Property(Struct, frozen=True):
    """One argument of a tool, with all that its schema refers to."""

    name: str
    schema: Any
    required: bool


def properties_of(tool: CallSchema) -> tuple[list[Property], Any]:
    """The arguments that a tool names, and the schema of others: False where none may be.

    Raises: InvalidRequest for what a schema asks of all arguments at once, which formats that
    write them one by one can't be held to.
    """
    schema = _resolved(tool.schema, tool.schema)
    for keyword in _WHOLE:
        if keyword in schema and schema[keyword] not in ([], {}, 0):
            raise InvalidRequest(
                f"The parameters of the tool '{tool.name}' have '{keyword}' at their top, which "
                "calls of this model can't be held to: it writes arguments one by one. Leave it "
                "out, or neither demand the call nor ask for a strict one.",
                at=Location("tools"),
            )
    definitions: dict[str, Any] = {
        key: tool.schema[key] for key in ("$defs", "definitions") if key in tool.schema
    }
    named = schema.get("properties", {})
    required = schema.get("required", [])
    found = [
        Property(name, _with(each, definitions), name in required) for name, each in named.items()
    ]
    found += [Property(name, {}, True) for name in required if name not in named]
    return found, _with(schema.get("additionalProperties", True), definitions)


def _with(schema: Any, definitions: Mapping[str, Any]) -> Any:
    used = isinstance(schema, dict) and '"$ref"' in json.dumps(schema)
    return {**definitions, **schema} if used else schema


def _resolved(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """The schema itself, where it only refers to a definition of the root's."""
    for _ in range(16):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str):
            break
        target: Any = root
        for part in reference.removeprefix("#").strip("/").split("/"):
            target = target.get(part) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            break
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema if isinstance(schema, dict) else {}


def is_plain_text(schema: Any) -> bool:
    """Whether any text at all satisfies the schema, so that it may stand without quotes."""
    if not isinstance(schema, dict) or not schema.keys() <= _NOTES | {"anyOf", "oneOf"}:
        return False
    kinds = schema.get("type")
    listed = [kinds] if isinstance(kinds, str) else kinds or []
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        return not listed and all(
            isinstance(each, dict) and each.keys() <= _NOTES for each in choices
        ) and any(is_plain_text(each) for each in choices)  # fmt: skip
    return "string" in listed and not {"array", "object"} & set(listed)


def texts_of_enum(schema: Any) -> list[str] | None:
    """The texts that a schema lists, where it allows nothing else."""
    if not isinstance(schema, dict) or not schema.keys() <= _NOTES | {"enum", "const"}:
        return None
    listed = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else []
    texts = [each for each in listed if isinstance(each, str) and each]
    return texts if texts and len(texts) == len(listed) else None


def value_of(schema: Any, root: Mapping[str, Any], text: str) -> Any:
    """What a text without quotes means as a value of this schema."""
    schema = _resolved(schema, root)
    if _types(schema, root) == {"string"} and (is_plain_text(schema) or texts_of_enum(schema)):
        return text
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError):
        return _python_word(text, schema, root)
    allowed = _types(schema, root)
    kind = _TYPES[type(value)]
    if not allowed or kind in allowed or (kind == "integer" and "number" in allowed):
        return value
    return text if "string" in allowed else value


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON's that a call can have")


def may_be_text(schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether a value of this schema may be a text."""
    types = _types(schema, root)
    return not types or "string" in types


def _python_word(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """Some models write Python's True, False and None."""
    words: dict[str, Any] = {"True": True, "False": False, "None": None}
    word = text.strip()
    allowed = _types(schema, root)
    if word in words and (_TYPES[type(words[word])] in allowed):
        return words[word]
    return text


def _types(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The types that a value may have; empty where any."""
    schema = _resolved(schema, root)
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return {kinds}
    if isinstance(kinds, list):
        return {kind for kind in kinds if isinstance(kind, str)}
    listed = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if isinstance(listed, list) and listed:
        return {_TYPES[type(each)] for each in listed if type(each) in _TYPES}
    choices = schema.get("anyOf") or schema.get("oneOf") or []
    found = [_types(each, root, depth + 1) for each in choices] if depth < 8 else []
    return set().union(*found) if found and all(found) else set()


def python_arguments(text: str) -> dict[str, Any] | None:
    """The arguments of `(a='x', b=[1, True])`, JSON's words taken as well; None if it is none.

    Names may be such as Python doesn't have (`$filter`).
    """
    if len(text) > MAX_PYTHON:
        return None
    names: dict[str, str] = {}
    try:
        written = _with_identifiers(text, names)
        with warnings.catch_warnings(action="ignore"):  # of odd escapes, which are taken
            tree = ast.parse(f"f{written}", mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args:
            return None
        return {names[each.arg]: _literal(each.value) for each in tree.keywords if each.arg}
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


_PYTHON_PIECE = re.compile(
    r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[()\[\]{},=]|[^()\[\]{},='\"]+|.", re.DOTALL
)


def _with_identifiers(text: str, names: dict[str, str]) -> str:
    """The arguments with `k0`, `k1` … for their names, which are noted in `names`."""
    pieces = _PYTHON_PIECE.findall(text)
    depth = 0
    for index, piece in enumerate(pieces):
        if piece == "=" and depth == 1 and index > 1 and pieces[index - 2] in ("(", ","):
            name = f"k{len(names)}"
            names[name], pieces[index - 1] = pieces[index - 1].strip(), name
        depth += (piece in "([{") - (piece in ")]}")
    return "".join(pieces)


def _literal(node: ast.expr) -> Any:
    """Raises: ValueError for what is no JSON value."""
    match node:
        case ast.Constant(value=str() as value):
            # JSON's escapes of one character may be two surrogates in Python.
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        case ast.Constant(value=None | bool() | int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=("true" | "false" | "null") as word):
            return {"true": True, "false": False, "null": None}[word]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {str(_literal(key)): _literal(value) for key, value in pairs if key}
    raise ValueError("no JSON value")


def python_text(value: Any) -> str:
    """A JSON value as Python writes it."""
    return repr(value)


def bare_object(text: str, quote: str) -> dict[str, Any] | None:
    """The object `{a:1,b:QxQ}`, whose keys stand bare and whose texts are within `quote`."""
    parts = text.split(quote)
    if len(parts) % 2 == 0:
        return None
    written = []
    for place, part in enumerate(parts):
        if place % 2:
            written.append(json.dumps(part, ensure_ascii=False))
        else:
            written.append(
                re.sub(r"([{,]\s*)([^\s{}\[\],:\"][^{}\[\],:\"]*?)(\s*:)", r'\1"\2"\3', part)
            )
    try:
        value = json.loads("".join(written))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def bare_text(value: Any, quote: str) -> str:
    """A JSON value with bare keys, and its texts within `quote`."""
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        items = (f"{key}:{bare_text(item, quote)}" for key, item in value.items())
        return "{" + ",".join(items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(bare_text(item, quote) for item in value) + "]"
    return json.dumps(value)


def listed(names: list[Property], name: str, item: str, comma: str) -> Iterator[str]:
    """Lark rules `name`: the items `item_0`, `item_1` ... with commas, optional ones left out."""
    for index, each in enumerate(names):
        later = f"{name}_after_{index + 1}"
        alone = f"{item}_{index} {later}"
        yield f"{name}_{index}: {alone}" + ("" if each.required else f" | {name}_{index + 1}")
        more = f"{comma} {item}_{index}"
        yield f"{name}_after_{index}: " + (more if each.required else f"({more})?") + f" {later}"
    last = len(names)
    yield f'{name}_{last}: ""'
    yield f'{name}_after_{last}: ""'
    yield f"{name}: {name}_0"
