"""The grammar of calls by a layout: nothing but valid calls, in exactly its texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from maestrale.errors import InvalidRequest, Location
from maestrale.prompt.tools.arguments import (
    Property,
    is_plain_text,
    listed,
    properties_of,
    texts_of_enum,
)
from maestrale.prompt.tools.base import CallSchema, Rules
from maestrale.prompt.tools.lark import (
    alternatives,
    json_arguments,
    lark_literal,
    lark_pattern,
    lark_text,
)
from maestrale.prompt.tools.layout import Layout, units

_ANY_TEXT = "/(.|\\n)*/"
_KEY = "[a-zA-Z0-9_.-]{1,64}"
_NOTES = {"title", "description", "default", "examples", "deprecated", "type"}


class LayoutGrammar:
    """Makes the rules of one request."""

    def __init__(self, layout: Layout, controls: Mapping[str, int]) -> None:
        self._layout = layout
        self._controls = controls
        self._lines: list[str] = []
        self._schemas: list[tuple[str, str]] = []

    def rules(self, tools: Sequence[CallSchema], most: int, *, text: bool) -> Rules:
        """See `ToolFormat.rules`."""
        layout = self._layout
        opener = self._literal(layout.opener)
        more = f"({self._literal(layout.between)} call){{0,{most - 1}}}" if most > 1 else ""
        self._lines = [f"calls: {opener} rest", f"rest: call {more} {self._literal(layout.closer)}"]
        self._lines.append(alternatives(tools))
        write = {"json": self._json_call, "tags": self._tags_call,
                 "python": self._python_call, "bare": self._bare_call}[layout.style]  # fmt: skip
        for index, tool in enumerate(tools):
            self._lines.append(f"call_{index}: {write(index, tool)}")
        if layout.style == "json":
            self._schemas += json_arguments(tools)
        if text:
            self._free()
        return Rules("\n".join(self._lines), tuple(self._schemas))

    def _literal(self, text: str, *, json: bool = False) -> str:
        return lark_literal(text, self._controls, json=json)

    def _free(self) -> None:
        """Text, or text and then calls: no text has the marker that calls begin with."""
        first = units(self._layout.opener)[0]
        rest = self._literal(self._layout.opener.partition(first)[2])
        if first in self._controls:
            self._lines += ["free: TEXT calls?", f"TEXT: {_ANY_TEXT}"]
        elif len(first) == 1:  # no marker: only what an answer begins with can be a call
            other = f"[^{lark_pattern(first)}]"
            self._lines += ["free: TEXT? | calls", f"TEXT: /{other}(.|\\n)*/"]
        else:
            self._lines += [
                f"free: TEXT | until {rest} rest",
                f"TEXT: {_ANY_TEXT} & ~/(.|\\n)*{lark_pattern(first)}(.|\\n)*/",
                f"until[suffix={lark_text(first)}]: {_ANY_TEXT}",
            ]

    def _json_call(self, index: int, tool: CallSchema) -> str:
        layout = self._layout
        before = self._literal(layout.before + tool.name + layout.middle, json=layout.in_json)
        return f"{before} args_{index} {self._literal(layout.after, json=layout.in_json)}"

    def _tags_call(self, index: int, tool: CallSchema) -> str:
        properties, others = properties_of(tool)
        parts = [self._literal(tool.name + self._layout.middle)]
        for place, each in enumerate(properties):
            self._lines.append(f"arg_{index}_{place}: {self._tagged(index, place, each)}")
            parts.append(f"arg_{index}_{place}" + ("" if each.required else "?"))
        if others is not False:
            self._lines.append(f"more_{index}: {self._tagged_other(index, properties, others)}")
            parts.append(f"more_{index}{{0,32}}")
        return " ".join(parts)

    def _tagged(self, index: int, place: int, each: Property) -> str:
        layout = self._layout
        rule = f"value_{index}_{place}"
        texts = texts_of_enum(each.schema)
        if texts is not None:
            choice = " | ".join(map(lark_text, texts))
            before = self._literal(layout.key_open + each.name + layout.key_close)
            return f"{before} ({choice}) {self._literal(layout.value_close)}"
        plain = is_plain_text(each.schema)
        close = layout.key_close if plain else layout.key_close_json
        before = self._literal(layout.key_open + each.name + close)
        return f"{before} {self._value(rule, each.schema, plain)}"

    def _value(self, rule: str, schema: Any, plain: bool) -> str:
        """A value up to and with the text that closes it."""
        close = self._layout.value_close
        if not plain:
            self._schemas.append((rule, json.dumps(schema)))
            return f"{rule} {self._literal(close)}"
        if all(name not in close for name in self._controls):
            self._lines.append(f"{rule}[suffix={lark_text(close)}]: {_ANY_TEXT}")
            return rule
        self._lines.append(f"{rule.upper()}: {_ANY_TEXT}")
        return f"{rule.upper()} {self._literal(close)}"

    def _tagged_other(self, index: int, named: Sequence[Property], schema: Any) -> str:
        layout = self._layout
        taken = "|".join(lark_pattern(each.name) for each in named)
        key = f"KEY_{index}"
        self._lines.append(f"{key}: /{_KEY}/" + (f" & ~/({taken})/" if taken else ""))
        plain = schema in (True, {}) or is_plain_text(schema)
        close = layout.key_close if plain else layout.key_close_json
        value = self._value(f"other_{index}", schema, plain)
        return f"{self._literal(layout.key_open)} {key} {self._literal(close)} {value}"

    def _python_call(self, index: int, tool: CallSchema) -> str:
        properties, _ = properties_of(tool)
        for place, each in enumerate(properties):
            value = f"value_{index}_{place}"
            if _only(each.schema, "boolean"):
                self._lines.append(f'{value}: "True" | "False"')
            else:
                self._schemas.append((value, json.dumps(each.schema)))
            self._lines.append(f"arg_{index}_{place}: {lark_text(each.name + '=')} {value}")
        self._lines += listed(properties, f"args_{index}", f"arg_{index}", '", "')
        return f'{lark_text(tool.name + "(")} args_{index} ")"'

    def _bare_call(self, index: int, tool: CallSchema) -> str:
        properties, _ = properties_of(tool)
        inside = self._bare_object(properties, f"args_{index}", tool.name)
        return f'{lark_text(tool.name)} "{{" {inside} "}}"'

    def _bare_object(self, properties: list[Property], rule: str, tool: str) -> str:
        for place, each in enumerate(properties):
            value = self._bare_value(each.schema, f"{rule}_v{place}", tool)
            self._lines.append(f"{rule}_i_{place}: {lark_text(each.name + ':')} {value}")
        self._lines += listed(properties, rule, f"{rule}_i", '","')
        return rule

    def _bare_value(self, schema: Any, rule: str, tool: str) -> str:
        quote = self._literal(self._layout.quote)
        kinds = schema.get("type") if isinstance(schema, dict) else None
        texts = texts_of_enum(schema)
        if texts is not None:
            return f"{quote} ({' | '.join(map(lark_text, texts))}) {quote}"
        if is_plain_text(schema):
            if self._layout.quote in self._controls:
                self._lines.append(f"{rule.upper()}: {_ANY_TEXT}")
                return f"{quote} {rule.upper()} {quote}"
            self._lines.append(f"{rule}[suffix={lark_text(self._layout.quote)}]: {_ANY_TEXT}")
            return f"{quote} {rule}"
        if kinds in ("integer", "number", "boolean", "null"):
            self._schemas.append((rule, json.dumps(schema)))
            return rule
        if kinds == "array" and schema.keys() <= _NOTES | {"items"}:
            item = self._bare_value(schema.get("items", {"type": "string"}), f"{rule}_e", tool)
            return f'"[" ({item} ("," {item})*)? "]"'
        if kinds == "object" and "properties" in schema:
            inner, _ = properties_of(CallSchema(tool, schema))
            return f'"{{" {self._bare_object(inner, rule, tool)} "}}"'
        raise InvalidRequest(
            f"The parameters of the tool '{tool}' ask more than calls of this model can be held "
            "to: it writes texts, numbers, booleans, lists and objects of these, without further "
            "keywords. Say it with these, or neither demand the call nor ask for a strict one.",
            at=Location("tools"),
        )


def _only(schema: Any, kind: str) -> bool:
    return isinstance(schema, dict) and schema.get("type") == kind and schema.keys() <= _NOTES
