"""The grammar of JSON that satisfies a schema, laid out as models write it, in llguidance's Lark.

A value stands on one line (", " and ": "), or is broken: a line for each item, indented by two
spaces, four or a tab a level, all of it the same. No other white space may occur, so an answer
can't go on with blanks. The layout is the parameter of the rules: the low byte is the depth, the
next one what it is indented by; 0 is one line.

An object has the properties that its schema names, in that order, and others only where the
schema says of others that they may be there, or names none at all.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal

from maestrale.engines.schema.document import Conjunction, Document
from maestrale.engines.schema.members import Members, counted_rules, free_rules
from maestrale.engines.schema.numbers import Numbers, expression, with_step
from maestrale.engines.schema.reading import Reader
from maestrale.engines.schema.shapes import Arrays, Literals, Objects, Value
from maestrale.engines.schema.strings import PLAIN, Strings, literal, search
from maestrale.engines.schema.trial import has_text

DEEPEST = 8  # levels that may be broken; what is deeper stands on one line
_INDENTS = ("  ", "    ", "\t")
_LAYOUT = "0xfff"
_ROOT = "0xf00"  # the whole text, before its first line break
NO_TEXT = "no text satisfies it: it contradicts itself, or needs itself again without end"
_KEY = r'/"(?:[^"\\\x00-\x1f\x7f]|\\["\\bfnrt])+"/'
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_PARAMETER = re.compile("::_|::incr|::bit_and|%if")
_JSON_OPTIONS = {"whitespace_flexible": False, "lenient": False}


def rules(name: str, text: str) -> str:
    """Rules in Lark for JSON of this schema; `name` is the first one's, and begins the others'.

    Raises: ValueError when it isn't a schema, nothing satisfies it, or it can't be enforced.
    """
    document = Document(text)
    root = document.conjunction(document.root, "", "it")
    reader = Reader(document)
    if not reader.possible(root):
        raise ValueError(NO_TEXT)
    return _Writer(reader, name).write(root)


def spelled(value: Value) -> str:
    """A value as JSON on one line, its numbers as they are."""
    if isinstance(value, dict):
        members = (f"{spelled(k)}: {spelled(v)}" for k, v in value.items())
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(spelled, value)) + "]"
    if isinstance(value, Decimal):
        whole = value == value.to_integral_value() and abs(value) < 10**15
        return str(int(value)) if whole else str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


class _Writer:
    def __init__(self, reader: Reader, name: str) -> None:
        self._reader = reader
        self._name = name
        self._prefix = name.replace("-", "_").lower() + "_"
        self._lines: list[str] = []
        self._values: dict[Conjunction, tuple[str, bool]] = {}
        self._todo: list[Conjunction] = []
        self._terminals: dict[str, str] = {}
        self._inside: dict[str, set[str]] = {}  # rule → rules of the values in it

    def write(self, root: Conjunction) -> str:
        start = self._reference(root)
        while self._todo:
            self._value(self._todo.pop())
        name, laid_out = self._values[root]
        if laid_out:
            start = f"{name}::{_ROOT}"
            self._lines += self._layout(min(DEEPEST, self._height(name, {})))
        return "\n".join([f"{self._name}: {start}", *self._lines])

    def _layout(self, depth: int) -> list[str]:
        """The rules of line breaks, and of what separates two items."""
        ways = []
        for unit, indent in enumerate(_INDENTS, 1):
            for level in range(1, depth + 1):
                text = literal("\n" + indent * level)
                ways.append(f"{text} %if eq(_, {unit << 8 | level:#x})")
        line, separator = self._prefix + "line", self._prefix + "sep"
        broken = f'"," {line}::_ %if ne(_, 0x0)'
        return [
            f"{line}::_ : " + " | ".join(ways),
            f'{separator}::_ : ", " %if eq(_, 0x0) | {broken}',
        ]

    def _height(self, rule: str, known: dict[str, int]) -> int:
        """How deep values nest below a rule; DEEPEST where that has no end."""
        if rule not in known:
            known[rule] = DEEPEST
            inner = (self._height(each, known) for each in self._inside[rule])
            known[rule] = min(DEEPEST, 1 + max(inner, default=0))
        return known[rule]

    def _reference(self, conjunction: Conjunction, layout: str = "_") -> str:
        """The rule of a value, for use in another one."""
        if conjunction not in self._values:
            shapes = self._reader.shapes(conjunction)
            laid_out = any(isinstance(shape, Arrays | Objects) for shape in shapes)
            self._values[conjunction] = f"{self._prefix}v{len(self._values)}", laid_out
            self._todo.append(conjunction)
        name, laid_out = self._values[conjunction]
        return f"{name}::{layout}" if laid_out else name

    def _value(self, conjunction: Conjunction) -> None:
        name, laid_out = self._values[conjunction]
        inside = self._inside[name] = set[str]()
        ways, scalars = [], []
        for index, shape in enumerate(self._reader.shapes(conjunction)):
            if isinstance(shape, Literals):
                scalars += [literal(spelled(value)) for value in shape.values]
            elif isinstance(shape, Numbers) and shape.step:
                ways.append(self._json(with_step(shape)))
            elif isinstance(shape, Numbers):
                scalars.append(expression(shape))
            elif not self._reader.any_possible([shape]):
                continue
            elif isinstance(shape, Strings) and shape.patterns and shape.simple:
                ways.append(self._json(shape.schema()))
            elif isinstance(shape, Strings):
                scalars.append(shape.expression())
            else:
                rule = f"{name}_{index}"
                if isinstance(shape, Arrays):
                    way = self._array(rule, shape, inside)
                else:
                    way = self._object(rule, shape, inside)
                ways += [way] if way else []
        if scalars:
            ways.append(self._terminal(" | ".join(dict.fromkeys(scalars))))
        if not ways:
            raise ValueError(NO_TEXT)
        if laid_out:
            self._rule(name, ways)
        else:
            self._lines.append(f"{name}: " + " | ".join(ways))

    def _rule(self, name: str, ways: list[str]) -> None:
        """A rule with the layout as its parameter, which each has to make use of."""
        if not any(_PARAMETER.search(_QUOTED.sub("", way)) for way in ways):
            ways = [*ways[:-1], f"{ways[-1]} %if ge(_, 0x0)"]
        self._lines.append(f"{name}::_ : " + " | ".join(ways))

    def _terminal(self, expression: str) -> str:
        """The name of a terminal. Equal ones are one, which llguidance is quicker with."""
        if expression not in self._terminals:
            name = f"{self._prefix}t{len(self._terminals)}".upper()
            self._terminals[expression] = name
            self._lines.append(f"{name}: {expression}")
        return self._terminals[expression]

    def _json(self, schema: dict[str, object]) -> str:
        """A rule that llguidance makes of a schema itself."""
        text = "%json " + json.dumps({"x-guidance": _JSON_OPTIONS, **schema})
        if text not in self._terminals:
            name = f"{self._prefix}j{len(self._terminals)}"
            self._terminals[text] = name
            self._lines.append(f"{name}: {text}")
        return self._terminals[text]

    def _inner(self, conjunction: Conjunction, inside: set[str], layout: str = "_") -> str:
        reference = self._reference(conjunction, layout)
        name, laid_out = self._values[conjunction]
        if laid_out:
            inside.add(name)
        return reference

    def _brackets(self, rule: str, pair: str, *, empty: bool) -> None:
        """What is in `{rule}_in` between brackets, on one line or broken; or nothing at all."""
        inner, line = f"{rule}_in", self._prefix + "line"
        opening, closing = literal(pair[0]), literal(pair[1])
        ways = [
            f"{opening} {inner}::0x0 {closing}",
            f"{opening} {line}::incr([0:8]) {inner}::incr([0:8]) {line}::_ {closing} "
            f"%if and(and(ne(_, 0x0), ne(_, {_ROOT})), lt([0:8], {DEEPEST}))",
        ]
        # The first line decides what all others are indented by: before it there is one state
        # alone, since llguidance doesn't tell apart what waits for the same rule.
        for unit, indent in enumerate(_INDENTS, 1):
            first, last = literal("\n" + indent), literal("\n")
            ways.append(
                f"{opening} {first} {inner}::{unit << 8 | 1:#x} {last} {closing} %if eq(_, {_ROOT})"
            )
        if empty:
            ways.append(literal(pair))
        self._rule(rule, ways)

    def _array(self, rule: str, shape: Arrays, inside: set[str]) -> str:
        """What stands for it in another rule; empty: it can't be written."""
        possible = self._reader.possible
        first, high = list(shape.first), shape.longest
        for index, item in enumerate(first):
            if not possible(item):
                high = min(index, index if high is None else high)
                break
        rest = shape.rest or ()
        if not possible(rest):
            high = len(first) if high is None else min(high, len(first))
        if high is not None:
            del first[high:]
        low = shape.low
        if low is None:  # a list of items is meant to be had as a whole
            low = len(first) if shape.rest is None else 0
        if high == 0:
            return literal("[]") if not low else ""
        separator = f"{self._prefix}sep::_"
        items = [self._inner(item, inside) for item in first]
        tail = ""
        if high is None or high > len(first):
            another = self._inner(rest, inside)
            least = max(low, 1) - max(len(first), 1)
            most = "" if high is None else str(high - max(len(first), 1))
            tail = f"({separator} {another}){{{max(least, 0)},{most}}}" if most != "0" else ""
            items = items or [another]
        # From `low` on each item may be the last.
        parts = [items[0]]
        for index in range(1, len(items)):
            if index >= low:
                parts.append(f"{rule}_{index}::_")
                break
            parts += [separator, items[index]]
        else:
            parts.append(tail)
        self._rule(f"{rule}_in", [" ".join(parts)])
        for index in range(max(low, 1), len(items)):
            follows = f"{rule}_{index + 1}::_" if index + 1 < len(items) else tail
            self._rule(f"{rule}_{index}", [f"{separator} {items[index]} {follows}", '""'])
        self._brackets(rule, "[]", empty=low == 0)
        return f"{rule}::_"

    def _object(self, rule: str, shape: Objects, inside: set[str]) -> str:
        """What stands for it in another rule; empty: it can't be written."""
        named = dict(shape.properties)
        named |= {name: shape.property(name) for name in shape.required if name not in named}
        others = self._others(shape, named)
        written = {
            name: conjunction
            for name, conjunction in named.items()
            if self._allowed(name, conjunction, shape)
        }
        if (not written and not others) or shape.high == 0:
            return literal("{}") if not shape.required and not shape.low else ""
        required = [name in shape.required for name in written]
        counted = shape.low > sum(required) or (
            shape.high is not None and (bool(others) or shape.high < len(written))
        )
        layout = f"bit_and({_LAYOUT})" if counted else "_"
        separator = f"{self._prefix}sep::{layout}"
        texts = [
            f"{literal(f'{spelled(name)}: ')} {self._inner(conjunction, inside, layout)}"
            for name, conjunction in written.items()
        ]
        other = " | ".join(
            f'{key} ": " {self._inner(conjunction, inside, layout)}' for key, conjunction in others
        )
        other = f"({other})" if other else ""
        members = Members(rule, tuple(zip(texts, required, strict=True)), other, separator)
        found = counted_rules(members, shape.low, shape.high) if counted else free_rules(members)
        for name, ways in found:
            self._rule(name, ways)
        self._brackets(rule, "{}", empty=not any(required) and shape.low == 0)
        return f"{rule}::_"

    def _allowed(self, name: str, conjunction: Conjunction, shape: Objects) -> bool:
        if shape.names and not self._reader.accepts(shape.names, name):
            return False
        return self._reader.possible(conjunction)

    def _others(
        self, shape: Objects, named: dict[str, Conjunction]
    ) -> list[tuple[str, Conjunction]]:
        """Terminals of the keys that aren't named, each with what its value must be.

        A set of names in `propertyNames` is put with those that are named.
        """
        limits = []
        for allowed in self._reader.shapes(shape.names) if shape.names else ():
            if isinstance(allowed, Literals):
                for each in allowed.values:
                    if isinstance(each, str) and (shape.open or self._matched(shape, each)):
                        named.setdefault(each, shape.property(each))
            elif isinstance(allowed, Strings):
                limits.append(allowed)
        if shape.names and not limits:
            return []
        taken = " | ".join(literal(spelled(name)) for name in named)
        free = f" & ~({taken})" if taken else ""
        limit = " | ".join(f"({each.text()})" for each in limits if each != Strings())
        limit = f" & ({limit})" if limit and Strings() not in limits else ""
        patterns = {pattern: f"({search(pattern)})" for pattern, _ in shape.patterns}
        others: list[tuple[str, Conjunction]] = []
        for pattern, conjunction in shape.patterns:
            if self._reader.possible(conjunction):
                # Of keys that match two patterns there are none, so that one schema is enough.
                rest = "".join(f" & ~{text}" for each, text in patterns.items() if each != pattern)
                key = f'"\\"" (/{PLAIN}*/ & {patterns[pattern]}{rest}{limit}) "\\""'
                self._add_key(others, f"({key}){free}", conjunction)
        if shape.open and self._reader.possible(shape.additional or ()):
            key = _KEY
            if patterns or limit:
                rest = "".join(f" & ~{text}" for text in patterns.values())
                key = f'("\\"" (/{PLAIN}*/{rest}{limit}) "\\"")'
            self._add_key(others, key + free, shape.additional or ())
        return others

    def _add_key(
        self, others: list[tuple[str, Conjunction]], key: str, conjunction: Conjunction
    ) -> None:
        if has_text(key):
            others.append((self._terminal(key), conjunction))

    def _matched(self, shape: Objects, name: str) -> bool:
        return shape.property(name) != (shape.additional or ())
