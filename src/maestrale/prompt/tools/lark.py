"""Pieces of Lark grammars: texts, control tokens, and values by a JSON schema."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from maestrale.prompt.tools.base import CallSchema

WILD = "\0"  # in a literal: any number or identifier
_WILD_RULE = "/[a-zA-Z0-9]{1,16}/"
# JSON's own lexemes: where other JSON may stand as well, the lexer, which takes the longest,
# could not go back.
_LEXEMES = re.compile(r'"[^"]*"|[:,] ?|[\[\]{}]|[^"\[\]{}:,]+|"')


def lark_text(text: str) -> str:
    """`text` as a Lark string."""
    return msgspec.json.encode(text).decode()


def lark_literal(text: str, controls: Mapping[str, int], *, json: bool = False) -> str:
    """`text` as a sequence of terminals; names of control tokens in it are those tokens.

    With `json` its parts are as small as JSON's lexemes.
    """
    names = sorted((re.escape(name) for name in controls), key=len, reverse=True)
    parts = []
    for part in re.split(f"({'|'.join([WILD, *names])})", text):
        if part == WILD:
            parts.append(_WILD_RULE)
        elif part in controls:
            parts.append(f"<[{controls[part]}]>")
        elif part:
            parts += map(lark_text, _LEXEMES.findall(part) if json else [part])
    return " ".join(parts)


def lark_pattern(text: str) -> str:
    """A regular expression, as Lark writes it, for exactly `text`."""
    return "".join(
        each if each.isalnum() or each == "_" or ord(each) > 127 else f"\\x{ord(each):02x}"
        for each in text
    )


def alternatives(tools: Sequence[CallSchema]) -> str:
    """The rule `call`, one of `call_0`, `call_1` ..."""
    return "call: " + " | ".join(f"call_{index}" for index in range(len(tools)))


def json_arguments(tools: Sequence[CallSchema]) -> tuple[tuple[str, str], ...]:
    """The rules `args_0`, `args_1` ...: each tool's arguments as one JSON object."""
    return tuple(
        (f"args_{index}", msgspec.json.encode(tool.schema).decode())
        for index, tool in enumerate(tools)
    )


def object_calls(tools: Sequence[CallSchema], field: str) -> str:
    """The rules `call` and `call_I` for calls as `{"name": ..., field: ...}`."""
    lines = [alternatives(tools)]
    for index, tool in enumerate(tools):
        before = lark_literal(f'{{"name": "{tool.name}", "{field}": ', {}, json=True)
        lines.append(f'call_{index}: {before} args_{index} "}}"')
    return "\n".join(lines)
