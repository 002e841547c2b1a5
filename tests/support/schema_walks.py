"""Schemas at random, and texts at random that the masks of their grammars allow."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
from hypothesis import strategies as st

from maestrale.engines.base import Constraint
from maestrale.engines.constraint import TokenConstraint, compile_constraint
from maestrale.models.vocabulary import Vocabulary

EOS = 0
PIECES = (
    *(b'": ', b'", "', b'"}', b'{"', b"[{", b"}]", b"[]", b"{}", b", ", b"true", b"null", b"12"),
    *(
        b"\n",
        b"\n  ",
        b"\n    ",
        b"\n\t",
        b"  ",
        b"\\u00",
        b'\\"',
        b"a",
        b"ab",
        b"-0",
        b"e5",
        b".5",
    ),
    *("é".encode(), "🙂".encode(), "🙂".encode()[:2], b"2024-02-", b"T12:", b"Z"),
)
VOCABULARY = Vocabulary(
    token_bytes=(b"", b"", *(bytes([byte]) for byte in range(256)), *PIECES),
    control_ids={"</s>": EOS, "<s>": 1},
    eos_token_ids=(EOS,),
)
CLOSING = frozenset(2 + byte for byte in b'"}]')


def compiled(schema: Any) -> TokenConstraint:
    """Raises: ConstraintError."""
    return compile_constraint(Constraint("json_schema", json.dumps(schema)), VOCABULARY)


def walk(constraint: TokenConstraint, seed: int, most: int = 200) -> str | None:
    """A text of tokens drawn from the masks, keener on its end the longer it is; None: cut off.

    Raises: ConstraintError where the grammar leads nowhere.
    """
    chance = random.Random(seed)
    constraint = constraint.copy()
    text = b""
    for position in range(most):
        allowed = np.flatnonzero(constraint.allowed()).tolist()
        if EOS in allowed and (len(allowed) == 1 or chance.random() < 0.4):
            return text.decode()
        closing = [token for token in allowed if token in CLOSING]
        end = closing and chance.random() < 0.05 + position / most
        token = chance.choice(closing if end else [token for token in allowed if token != EOS])
        text += VOCABULARY.token_bytes[token]
        constraint.accept(token)
        if constraint.finished:
            return text.decode()
    return None


INDENTS = ("  ", "    ", "\t")


def assert_laid_out(text: str) -> None:
    """White space is ", ", ": ", and line breaks indented by their depth, by the same all along."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*("|$)', '""', text)
    kinds = set(INDENTS)
    for found in re.finditer(r"\n([ \t]*)", bare):
        before, after = bare[: found.start()], bare[found.end() : found.end() + 1]
        depth = sum(map(before.count, "[{")) - sum(map(before.count, "]}")) - (after in ("]", "}"))
        kinds &= {indent for indent in INDENTS if indent * depth == found.group(1)}
    assert kinds, text
    assert not re.search(r"\s\s|(?<![,:])\s", re.sub(r"\n[ \t]*", "", bare)), text


def validator(schema: Any) -> jsonschema.Draft202012Validator:
    """Checks formats, too."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema, format_checker=checker)


NAMES = st.sampled_from(["a", "b", "aé", 'q"uote', "x_1", "x_y", "", "a b", "$ref"])
SMALL = st.integers(0, 3)
NUMBERS = st.one_of(
    st.integers(-12, 12),
    st.sampled_from([2**53 + 1, -(2**63), 2**63 - 1, 10**25, 0.1, 0.5, -0.5, 1e-7, 1e21, 99.95]),
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda number: round(number, 3)),
)
PATTERNS = st.sampled_from(
    [
        "^a",
        "b$",
        "^[a-z]{2,4}$",
        "x_",
        "^\\d+$",
        "^(?!a)[a-c]+$",
        "a|^b$",
        "^\\W{1,2}$",
        '"',
        ".*?c",
        '^[^"]*$',
        "a(?!b)",
        "(^|_)b",
        "a(?=_|$)",
        "^\\S+$",
    ]
)
FORMATS = st.sampled_from(
    [
        "date",
        "date-time",
        "time",
        "uuid",
        "ipv4",
        "ipv6",
        "email",
        "uri",
        "duration",
        "hostname",
        "uri-reference",
        "idn-email",
    ]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(["", "a", "x_1", "é", "\n", '"'])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=2)),
    max_leaves=4,
)


def _some(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these keywords."""
    return st.fixed_dictionaries({}, optional=keywords)


def _both(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda found: {k: v for part in found for k, v in part.items()})


def _deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, min_size=1, max_size=3)
    array = _both(
        st.just({"type": "array"}),
        _some(items=inner, prefixItems=few, minItems=SMALL, maxItems=SMALL, unevaluatedItems=inner),
    )
    thing = _both(
        st.just({"type": "object"}),
        _some(
            properties=st.dictionaries(NAMES, inner, max_size=3),
            required=st.lists(NAMES, max_size=2, unique=True),
            additionalProperties=inner,
            patternProperties=st.dictionaries(PATTERNS, inner, max_size=2),
            minProperties=SMALL,
            maxProperties=SMALL,
            dependentRequired=st.dictionaries(NAMES, st.lists(NAMES, max_size=2), max_size=1),
            dependentSchemas=st.dictionaries(NAMES, inner, max_size=1),
            unevaluatedProperties=inner,
        ),
        _some(propertyNames=st.one_of(_string, VALUES.map(lambda value: {"enum": [value, "a"]}))),
    )
    combined = _both(
        _some(allOf=few, anyOf=few, oneOf=few),
        _some(**{"$ref": st.sampled_from(["#", "#/$defs/one", "#/$defs/two", "#/x/0"])}),
        _some(**{"if": inner, "then": inner, "else": inner, "not": inner}),
        st.one_of(st.just({}), array, thing, _leaf),
    )
    return st.one_of(array, thing, combined)


_string = _both(
    st.just({"type": "string"}),
    _some(minLength=SMALL, maxLength=SMALL, pattern=PATTERNS),
    st.one_of(st.just({}), _some(format=FORMATS)),
)
_number = _both(
    st.sampled_from([{"type": "integer"}, {"type": "number"}, {"type": ["number", "null"]}]),
    _some(minimum=NUMBERS, maximum=NUMBERS, exclusiveMinimum=NUMBERS, exclusiveMaximum=NUMBERS),
    _some(multipleOf=st.integers(1, 9)),
)
_leaf = st.one_of(
    _string,
    _number,
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {}, True, {"not": {}}, {"type": []}]),
    st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
).map(lambda schema: schema if isinstance(schema, dict) else {})
SCHEMAS = st.tuples(
    st.recursive(_leaf, _deeper, max_leaves=8), *[st.recursive(_leaf, _deeper, max_leaves=3)] * 3
).map(lambda found: {**found[0], "$defs": {"one": found[1], "two": found[2]}, "x": [found[3]]})
