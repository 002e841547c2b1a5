"""Which texts a schema's grammar takes: values that must pass, and neighbours that must not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from maestrale.engines.constraint import TokenConstraint
from maestrale.errors import ConstraintError
from schema_walks import EOS, compiled, walk


def takes(constraint: TokenConstraint, text: str) -> bool:
    """Whether the text, byte by byte, is allowed and may end."""
    constraint = constraint.copy()
    for byte in text.encode():
        if constraint.finished or not constraint.allowed()[2 + byte]:
            return False
        constraint.accept(2 + byte)
    return constraint.finished or bool(constraint.allowed()[EOS])


A_AND_B = {"a": {"type": "integer"}, "b": {"enum": ["x"]}}
EMAIL = (
    "^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_'+\\-\\.]*)[A-Za-z0-9_+-]"
    "@([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$"
)
DURATION = (  # zod's
    r"^P(?:(\d+W)|(?!.*W)(?=\d|T\d)(\d+Y)?(\d+M)?(\d+D)?"
    r"(T(?=\d)(\d+H)?(\d+M)?(\d+([.,]\d+)?S)?)?)$"
)
LONG = ".".join(["a" * 63] * 3)
UUID = "12345678-1234-4234-8234-123456789abc"
KINDS = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"k": {"const": kind}, name: True},
            "required": ["k", name],
        }
        for kind, name in (("cat", "purrs"), ("dog", "barks"))
    ]
}
LIST = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["v", "next"],
}
TABLE: list[tuple[Any, list[str], list[str]]] = [
    # Numbers as they are written.
    ({"const": 1234567890123456789}, ["1234567890123456789"], ["1234567890123456790"]),
    ({"enum": [2**53 + 1, 2**64]}, [str(2**53 + 1), str(2**64)], [str(2**53), str(2**53 + 2)]),
    ({"const": {"id": [-(2**63) - 1]}}, ['{"id": [-9223372036854775809]}'], ['{"id": [-922]}']),
    ({"enum": [0.1, 1e21, 1.0]}, ["0.1", "1", "1E+21"], ["0.10", "1.00"]),
    (
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        ["0", "-9223372036854775808", "9223372036854775807"],
        ["-9223372036854775809", "9223372036854775808", "1.0", "-0", "01"],
    ),
    ({"type": "integer", "format": "uint8"}, ["0", "255"], ["-1", "256"]),
    ({"type": "integer", "minimum": 2**60 + 1}, [str(2**60 + 1)], [str(2**60), "5"]),
    (
        {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
        ["0", "-1.5", "5e41", "1e279"],
        ["5e419", "1e280", "1" * 21],
    ),
    ({"type": "number"}, ["1.5e-7", "-0.1"], ["5e419", "1e400", "9" * 400, ".5", "5."]),
    ({"minimum": 0.5, "exclusiveMaximum": 3, "type": "number"}, ["0.5", "2.999"], ["0.49", "3.0"]),
    ({"exclusiveMinimum": 0.1, "type": "number"}, ["0.11", "5"], ["0.1", "0.10", "-1", "0"]),
    ({"type": "number", "maximum": -2.5}, ["-2.5", "-3", "-100.25"], ["-2.4", "0", "2.5"]),
    ({"type": "integer", "minimum": -5, "multipleOf": 3}, ["-3", "0", "6"], ["-6", "4"]),
    ({"minimum": 0.5, "maximum": 3.5, "type": "integer"}, ["1", "3"], ["0", "4"]),
    ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, ["2"], ["1"]),
    # Formats: what a calendar and a clock have.
    (
        {"type": "string", "format": "date"},
        ['"2024-02-29"', '"2000-02-29"', '"0001-12-31"'],
        ['"2023-02-29"', '"1900-02-29"', '"2024-04-31"', '"0000-01-01"', '"2024-13-01"'],
    ),
    (
        {"type": "string", "format": "date-time"},
        ['"2024-02-29T23:59:59Z"', '"1999-12-31T00:00:00.5+01:00"'],
        ['"2023-02-29T00:00:00Z"', '"2024-01-01T24:00:00Z"', '"2024-01-01T00:00:60Z"'],
    ),
    ({"type": "string", "format": "time"}, ['"12:30:00Z"'], ['"12:60:00Z"', '"25:00:00Z"']),
    ({"type": "string", "format": "ipv6"}, ['"::1"', '"fe80::1:2"'], ['"::1::"', '"12345::"']),
    ({"type": "string", "format": "email", "pattern": EMAIL}, ['"a.b@c.de"'], ['"a..b@c.de"']),
    ({"type": "string", "format": "date", "pattern": "^2"}, ['"2024-01-01"'], ['"1999-01-01"']),
    ({"type": "string", "format": "password"}, ['"any"'], ["1"]),
    # Patterns of ECMA 262.
    ({"type": "string", "pattern": "a|^b$"}, ['"xay"', '"b"'], ['"bb"', '""']),
    ({"type": "string", "pattern": "^(?!a)[a-c]+?$"}, ['"ba"'], ['"ab"', '""']),
    ({"type": "string", "pattern": '^"\\u0041\\/$'}, ['"\\"A/"'], ['"A/"']),
    ({"type": "string", "pattern": "^[\\w-]+$"}, ['"a-1"'], ['"é"', '"a b"']),
    ({"type": "string", "pattern": '^[^"]*$'}, ['"a\\n"', '"\\\\"'], ['"\\""', '"a\\""']),
    ({"type": "string", "pattern": '^[^"\\\\]$'}, ['"a"', '"\\u0001"'], ['"\\""', '"\\\\"']),
    ({"type": "string", "pattern": "^[\\x00-\\x1f]$"}, ['"\\n"', '"\\u001f"'], ['"\\""', '"a"']),
    ({"type": "string", "pattern": "^[\\s\\S]$"}, ['"\xa0"', '"\\""', '"\\n"'], ['"ab"']),
    (
        {"type": "string", "pattern": "^\\S[^\\s]$"},
        ['"ab"'],
        ['"\ufeffa"', '"a\ufeff"', '"\\u001fa"'],
    ),
    # Anchors and looks ahead wherever they say something of the rest of the text.
    ({"type": "string", "pattern": "^a(?!b)"}, ['"a"', '"ac"'], ['"ab"', '"abc"']),
    ({"type": "string", "pattern": "(^|_)b"}, ['"b"', '"a_b"'], ['"ab"']),
    ({"type": "string", "pattern": "a($|_)"}, ['"a"', '"a_b"'], ['"ab"']),
    ({"type": "string", "pattern": "^(?:a(?=b)|c)b?$"}, ['"ab"', '"c"', '"cb"'], ['"a"', '"cc"']),
    (
        {"type": "string", "format": "duration", "pattern": DURATION},
        ['"P1W"', '"P1Y2M"', '"PT1H2M"'],
        ['"P"', '"PT"', '"P1Y1W"', '"P1YT"'],
    ),
    # zod calls a time without a zone `time`, too.
    (
        {"type": "string", "format": "time", "pattern": "^\\d\\d:\\d\\d$"},
        ['"12:30"'],
        ['"12:30:00Z"', '"12:60"'],
    ),
    ({"type": "string", "format": "hostname"}, ['"a-b.c"'], ['"xn--a"', f'"{"a" * 63}.{LONG}"']),
    (
        {"format": "uri-reference", "type": "string"},
        ['"a/b?c"', '"//h:1/"'],
        ['"//h:x"', '"//a@b"'],
    ),
    ({"type": "string", "format": "uuid4"}, [f'"{UUID}"'], [f'"{UUID.replace("-4", "-1")}"']),
    ({"type": "string", "format": "ipv4network"}, ['"10.0.0.0/8"'], ['"10.0.0.1/8"']),
    ({"type": "string", "format": "ipv6network"}, ['"2001:db8::/32"'], ['"2001:db8::1/32"']),
    ({"type": "string", "format": "emoji"}, ['"any"'], []),
    ({"enum": ["a"], "format": "of-its-own"}, ['"a"'], []),
    # Names of properties.
    (
        {"type": "object", "properties": {"\x7f\x01": {"const": "\x7f"}}, "required": ["\x7f\x01"]},
        ['{"\\u007f\\u0001": "\\u007f"}'],
        ['{"\x7f\\u0001": "a"}'],
    ),
    (
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": True},
        ['{"a": null, "b": 1}', '{"b": {}}', "{}"],
        ['{"a": 1}', '{"\\u0061": 1}', '{"b": 1, "\\u0061": 2}', '{"b": 1, "a": null}', '{"": 1}'],
    ),
    (
        {
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": A_AND_B["a"],
        },
        ['{"x": 1}', "{}"],
        ['{"x": "y"}'],
    ),
    (
        {"type": "object", "propertyNames": {"enum": ["p", "q"]}},
        ['{"p": 1, "q": []}', '{"q": null}'],
        ['{"r": 1}'],
    ),
    ({"type": "object", "propertyNames": {"pattern": "^x"}}, ['{"xy": 1}'], ['{"y": 1}']),
    (
        {"type": "object", "patternProperties": {"^x_": {"type": "null"}}},
        ['{"x_1": null}', "{}"],
        ['{"x_1": 1}', '{"y": null}', '{"\\u0078_": 1}'],
    ),
    # Closed where nothing is said, open where it is said aloud or nothing is named.
    ({"type": "object", "properties": A_AND_B}, ["{}", '{"a": 1, "b": "x"}'], ['{"c": 1}']),
    ({"type": "object"}, ['{"anything": [1]}'], ["[]"]),
    ({"type": "object", "required": ["a"]}, ['{"a": 1, "b": 2}'], ['{"b": 2}']),
    (
        {"allOf": [{"properties": {"a": True}}, {"properties": {"b": True}}], "type": "object"},
        ['{"a": 1, "b": 2}'],
        ['{"c": 1}'],
    ),
    (
        {"type": "object", "properties": {"a": True}, "unevaluatedProperties": True},
        ['{"a": 1, "z": 2}'],
        [],
    ),
    (
        {"type": "object", "properties": {"a": True}, "minProperties": 2},
        ['{"a": 1, "z": 2}'],
        ["{}"],
    ),
    (
        {"type": "object", "properties": {"a": True, "b": True, "c": True}, "maxProperties": 1},
        ["{}", '{"b": 1}'],
        ['{"a": 1, "b": 1}'],
    ),
    ({"type": "array", "prefixItems": [A_AND_B["a"]] * 2}, ["[1, 2]"], ["[1]", "[1, 2, 3]", "[]"]),
    (
        {"type": "array", "prefixItems": [A_AND_B["a"]], "items": True},
        ["[1]", "[]", '[1, "x"]'],
        [],
    ),
    # No-ops, as zod and others write them.
    (
        {"properties": {"a": {"anyOf": [{"not": {}}, {"const": 1}]}}, "type": "object"},
        ["{}", '{"a": 1}'],
        ['{"a": 2}'],
    ),
    (
        {"type": "object", "properties": {"a": {"not": {}}, "b": {"const": 1}}, "required": ["b"]},
        ['{"b": 1}'],
        ['{"a": 1, "b": 1}'],
    ),
    ({"const": 1, "if": {}, "dependentRequired": {}, "dependentSchemas": {}}, ["1"], ["2"]),
    ({"const": 1, "then": {"const": 2}, "else": False}, ["1"], []),
    ({"if": True, "then": {"const": 1}}, ["1"], ["2"]),
    ({"if": {"type": "string"}, "const": 1}, ["1"], []),
    ({"type": "array", "items": {"const": 1}, "contains": True, "minContains": 0}, ["[]"], []),
    ({"type": "array", "items": {"const": 1}, "minContains": 3}, ["[]"], []),
    ({"type": "array", "items": {"const": 1}, "uniqueItems": True, "maxItems": 1}, ["[1]"], []),
    ({"not": {"not": {}}, "const": 1}, ["1"], []),
    ({"not": {"type": ["object", "array", "string", "boolean", "number"]}}, ["null"], ["1"]),
    (
        {"type": "object", "dependentRequired": {"a": ["b"]}, "properties": A_AND_B},
        ["{}", '{"b": "x"}', '{"a": 1, "b": "x"}'],
        ['{"a": 1}'],
    ),
    # References to anywhere.
    ({"$ref": "#/x/0", "x": [{"const": 1}]}, ["1"], ["2"]),
    ({"$ref": "#/x~1y/a%20b", "x/y": {"a b": {"const": 1}}}, ["1"], []),
    ({"$ref": "#one", "$defs": {"n": {"$anchor": "one", "const": 1}}}, ["1"], []),
    (
        {
            "$ref": "#one",
            "properties": {"default": {"$anchor": "one", "const": 1}, "enum": {"$id": "e"}},
        },
        ["1"],
        [],
    ),
    ({"$ref": "#/$defs/a%25b~1c~0d", "$defs": {"a%b/c~d": {"const": 1}}}, ["1"], ["2"]),
    ({"$ref": "item", "$id": "http://h/s", "$defs": {"n": {"$id": "item", "const": 1}}}, ["1"], []),
    ({"$ref": "#/default", "default": {"minimum": 2, "type": "integer"}}, ["2"], ["1"]),
    (LIST, ['{"v": 1, "next": {"v": 2, "next": null}}'], ['{"v": 1}']),
    (KINDS, ['{"k": "cat", "purrs": 1}'], ['{"k": "cat", "barks": 1}']),
]


@pytest.mark.parametrize(("schema", "good", "bad"), TABLE, ids=lambda part: json.dumps(part)[:50])
def test_a_schema_takes_what_satisfies_it(schema: Any, good: list[str], bad: list[str]) -> None:
    constraint = compiled(schema)
    for text in good:
        assert takes(constraint, text), text
    for text in bad:
        assert not takes(constraint, text), text


ENDLESS = [
    {"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
            "b": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1},
        },
    },
    {"anyOf": [{"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}, {"enum": []}]},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "required": ["a"], "additionalProperties": False},
    {"type": "string", "pattern": "^a$", "minLength": 2},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
]


@pytest.mark.parametrize("schema", ENDLESS, ids=lambda schema: json.dumps(schema)[:50])
def test_what_no_finite_text_satisfies_is_refused(schema: Any) -> None:
    with pytest.raises(ConstraintError, match="no text satisfies it"):
        compiled(schema)


def test_what_needs_itself_is_left_out_where_it_may_be() -> None:
    endless = {"type": "object", "properties": {"c": {"$ref": "#/$defs/e"}}, "required": ["c"]}
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/e"}, "b": {"const": 1}}}
    constraint = compiled({**schema, "$defs": {"e": endless}})
    assert takes(constraint, '{"b": 1}')
    assert not takes(constraint, '{"a"')


ANY = {"type": "object", "properties": {"a": {}, "b": {}}}
LAID_OUT = [
    '{"a": {"x": 1}, "b": [1, 2]}',
    '{\n  "a": {\n    "x": 1\n  },\n  "b": [\n    1,\n    2\n  ]\n}',
    '{\n    "a": {"x": 1},\n    "b": [1, 2]\n}',
    '{\n\t"a": {\n\t\t"x": []\n\t},\n\t"b": {}\n}',
]
NOT_LAID_OUT = [
    '{ "a": 1}',
    '{"a":1}',
    '{"a": 1,"b": 2}',
    '{"a":  1}',
    '{"a": 1 }',
    '{\n"a": 1\n}',
    '{\n  "a": 1}',
    '{"a": 1,\n  "b": 2}',
    '{\n\n  "a": 1\n}',
    '{\n  "a": 1,\n    "b": 2\n}',
    '{\n  "a": 1,\n\t"b": 2\n}',
    '{\n  "a": {"x":\n 1}\n}',
    "{\n}",
    ' {"a": 1}',
    '{"a": 1}\n',
]


def test_white_space_is_what_the_nesting_needs() -> None:
    constraint = compiled(ANY)
    for text in LAID_OUT:
        assert takes(constraint, text), text
    for text in NOT_LAID_OUT:
        assert not takes(constraint, text), text


def test_what_is_nested_very_deep_stands_on_one_line() -> None:
    constraint = compiled({"type": "array"})
    deep: Any = 1
    for _ in range(8):
        deep = [deep]
    assert takes(constraint, json.dumps(deep, indent=2))
    assert not takes(constraint, json.dumps([deep], indent=2))
    assert takes(constraint, json.dumps([deep]))


@pytest.mark.parametrize("size", [50, 400])
def test_large_objects_are_compiled_and_walked(size: int) -> None:
    properties = {f"p{index}": {"type": ["integer", "null"]} for index in range(size)}
    for required in ([], list(properties)[::2]):
        constraint = compiled({"type": "object", "properties": properties, "required": required})
        text = walk(constraint, 1, most=20 * size)
        assert text is None or json.loads(text).keys() >= set(required)
