"""Constraints: every answer that ends by itself satisfies its schema, on random logits."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from maestrale.engines.base import Constraint, Sampling
from maestrale.engines.constraint import MAX_CONSTRAINT_BYTES, TokenConstraint, compile_constraint
from maestrale.engines.sampling import Sampler
from maestrale.errors import ConstraintError
from maestrale.models.vocabulary import Vocabulary
from schema_walks import assert_laid_out

EOS = 0
BOS = 1
PIECES = [
    *(b'{"', b'":', b'": ', b'": "', b'", "', b'"}', b"}]", b"[{", b"[]", b"{}", b"\n\n", b"  "),
    *(b"true", b"false", b"null", b"name", b"value", b" the", b"and", b"12", b"2024", b"-0", b"e5"),
    *(
        "é".encode(),
        "日".encode(),
        "🙂".encode(),
        "🙂".encode()[:2],
        b"foo",
        b"x_",
        b"\\u00",
        b'\\"',
    ),
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    """Two control tokens, every byte, and pieces that cross the borders of JSON's grammar."""
    return Vocabulary(
        token_bytes=(b"", b"", *(bytes([byte]) for byte in range(256)), *PIECES),
        control_ids={"</s>": EOS, "<s>": BOS},
        eos_token_ids=(EOS,),
    )


def compiled(vocabulary: Vocabulary, kind: Any, value: str) -> TokenConstraint:
    return compile_constraint(Constraint(kind, value), vocabulary)


def babble(
    constraint: TokenConstraint, vocabulary: Vocabulary, seed: int, most: int = 200
) -> bytes | None:
    """What a model of random weights writes under a constraint; None when it is cut off.

    It is a little keen on closing what it opened, or it would seldom end.
    """
    closing = np.isin(np.arange(len(vocabulary)), [EOS, *(2 + byte for byte in b'"}]')])
    chance = np.random.default_rng(seed)
    sampler = Sampler(Sampling(), seed=seed, prompt=())
    text = b""
    for position in range(most):
        logits = chance.standard_normal(len(vocabulary)).astype(np.float32)
        logits[closing] += 6 * position / most + 2
        token = sampler.sample(logits, position, constraint.allowed())
        if token == EOS:
            return text
        text += vocabulary.token_bytes[token]
        constraint.accept(token)
        if constraint.finished:
            return text
    return None


NESTED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "at": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "y": {"type": ["integer", "null"]}},
            "required": ["x", "y"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "tags", "at"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["children"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: list[dict[str, Any]] = [
    {},
    {"type": "object"},
    {"type": "boolean"},
    {"type": "integer"},
    {"type": "number", "minimum": 0.5, "maximum": 3},
    {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 1},
    {"type": "integer", "minimum": -5, "exclusiveMaximum": 7, "multipleOf": 3},
    {"type": "string", "minLength": 3, "maxLength": 6},
    {"type": "string", "pattern": "^[a-z]{2,4}\\d+$"},
    {"type": "string", "pattern": "^(a+)+b$"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"enum": ["a", 1, None, {"x": [1]}, 'quote"']},
    {"const": {"a": "é"}},
    {"type": ["string", "null"]},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False},
    {"type": "array", "uniqueItems": False, "items": {"type": "null"}},
    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    {"properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
    {"type": "object", "patternProperties": {"^x_": {"type": "integer"}}, "minProperties": 1},
    {"type": "object", "maxProperties": 2, "additionalProperties": {"type": "boolean"}},
    {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
        ]
    },
    {"type": "integer", "description": "annotations are no constraints", "nullable": True},
    NESTED,
    TREE,
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_answers_parse_validate_and_hold_no_idle_whitespace(
    vocabulary: Vocabulary, schema: dict[str, Any]
) -> None:
    pristine = compiled(vocabulary, "json_schema", json.dumps(schema))
    validator = jsonschema.validators.validator_for(schema)(schema)
    ended = 0
    for seed in range(12):
        answer = babble(pristine.copy(), vocabulary, seed)
        if answer is None:
            continue
        ended += 1
        value = json.loads(answer.decode())
        validator.validate(value)
        assert_laid_out(answer.decode())
    assert ended >= 3


INSIDES = re.compile(r"%llguidance|\.rs|start_|::|Regex|And \(|Err\(|x-guidance|NoExtension|python")
REFUSED = [
    ('{"type":"string","pattern":"(["}', "unclosed"),
    ('{"enum":[' + ",".join(f'"value{i}"' for i in range(100_000)) + "]}", "larger than"),
    ('{"a":' * 300 + "1" + "}" * 300, "deep"),
    ('{"a":' * 30_000 + "1" + "}" * 30_000, "deep"),
    ('{"$ref":"#"}', "no text"),
    ('{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}', "no text"),
    ('{"$ref":"#/nowhere"}', "nowhere"),
    ('{"$ref":"http://169.254.169.254/latest"}', "inside the schema"),
    ('{"$ref":"file:///etc/passwd"}', "inside the schema"),
    ("false", "no text"),
    ('{"type":"object","properties":{"a":false},"required":["a"]}', "no text"),
    ('{"type":"string","minLength":5,"pattern":"^a$"}', "no text"),
    ('{"type":"strin"}', "strin"),
    ('{"minLength":"x"}', "minLength"),
    ('{"required":"a"}', "required"),
    ("[]", "object or a boolean"),
    ("42", "object or a boolean"),
    ('{"type":', "not JSON"),
    ('{"minimum":NaN}', "not JSON"),
    ('{"const":"\ud800"}', "surrogate"),
    ('{"x-guidance":{"lenient":true},"not":{}}', "no text"),
    ('{"format":"fnord"}', "fnord"),
    ('{"oneOf":[{"type":"integer"},{"type":"number"}]}', "oneOf"),
    ('{"type":"object","minProperties":3}', "minProperties"),
    ('{"items":{"multipleOf":0.01}}', "multipleOf"),
    ('{"if":{"type":"string"},"then":{"minLength":1}}', "'if'"),
    ('{"enum":[5e419]}', "double"),
    ('{"maximum":1e400}', "double"),
    ('{"const":' + "9" * 5000 + "}", "double"),
    ('{"properties":{"a":{"const":1e-400}}}', "double"),
    ('{"minItems":99999999999}', "minItems"),
    ('{"pattern":"(?<=a)b"}', "(?<=a)b"),
    ('{"pattern":"(a)\\\\1"}', "refers back"),
    ('{"pattern":"(?:(?=a)a|b)+"}', "look ahead"),
    (json.dumps({"pattern": "(?:(?=a)a|b)" * 40}), "too many ways"),
    ('{"$id":"http://a.b/c","$ref":"http://[x"}', "URI"),
    *(
        (json.dumps({"properties": {"a": {keyword: value}}}), keyword)
        for keyword, value in {
            "uniqueItems": True,
            "not": {"type": "string", "minLength": 1},
            "contains": {"type": "string"},
            "$dynamicRef": "#a",
            "$recursiveRef": "#",
        }.items()
    ),
]


@pytest.mark.parametrize(("schema", "says"), REFUSED, ids=lambda text: ascii(text)[:50])
def test_what_cannot_be_enforced_is_refused_by_name(
    vocabulary: Vocabulary, schema: str, says: str
) -> None:
    with pytest.raises(ConstraintError) as caught:
        compiled(vocabulary, "json_schema", schema)
    message = str(caught.value)
    assert says in message
    assert not INSIDES.search(message)
    assert len(message) < 500


@pytest.mark.parametrize(
    "pattern", ["[a-z]{1,5}", "(a+)+b", "a/b\\/c", "é|日", "\\d{4}-\\d\\d", ""]
)
def test_regex_answers_match(vocabulary: Vocabulary, pattern: str) -> None:
    pristine = compiled(vocabulary, "regex", pattern)
    answers = [babble(pristine.copy(), vocabulary, seed, most=400) for seed in range(8)]
    ended = [answer for answer in answers if answer is not None]
    assert ended
    for answer in ended:
        assert re.fullmatch(pattern, answer.decode())


@pytest.mark.parametrize(
    "pattern", ["([", "(?=a)b", "a{5,2}", "x\0y", "a" * (MAX_CONSTRAINT_BYTES + 1)]
)
def test_bad_regexes_are_refused(vocabulary: Vocabulary, pattern: str) -> None:
    with pytest.raises(ConstraintError, match="regular expression"):
        compiled(vocabulary, "regex", pattern)


@pytest.mark.parametrize("pattern", [r"\bword", r"a\Bb", "a$b"])
def test_a_regex_that_looks_around_says_so(vocabulary: Vocabulary, pattern: str) -> None:
    with pytest.raises(ConstraintError, match="word boundaries, and anchors in the middle"):
        compiled(vocabulary, "regex", pattern)


def test_a_lark_grammar_is_followed(vocabulary: Vocabulary) -> None:
    pristine = compiled(vocabulary, "grammar", 'start: "yes" | "no" | "maybe " start')
    for seed in range(8):
        answer = babble(pristine.copy(), vocabulary, seed)
        assert answer is None or re.fullmatch(rb"(maybe )*(yes|no)", answer)


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("", "start"),
        ("start: foo", "line 1"),
        ("start: other\nother: bar", "line 2"),
        ('%llguidance {"allow_invalid_utf8": true}\nstart: /./', "%llguidance"),
        ("start: <s>", "no text"),
    ],
)
def test_bad_grammars_are_refused(vocabulary: Vocabulary, grammar: str, says: str) -> None:
    with pytest.raises(ConstraintError, match=re.escape(says)):
        compiled(vocabulary, "grammar", grammar)


def test_control_tokens_are_never_allowed_but_the_end(vocabulary: Vocabulary) -> None:
    constraint = compiled(vocabulary, "regex", "a*")
    allowed = constraint.allowed()
    assert allowed[EOS]
    assert not allowed[BOS]


def test_a_token_that_is_not_allowed_is_refused(vocabulary: Vocabulary) -> None:
    constraint = compiled(vocabulary, "regex", "a")
    with pytest.raises(ConstraintError):
        constraint.accept(2 + ord("b"))


def test_copies_go_their_own_ways(vocabulary: Vocabulary) -> None:
    first = compiled(vocabulary, "regex", "ab")
    first.accept(2 + ord("a"))
    second = first.copy()
    first.accept(2 + ord("b"))
    assert first.finished
    assert not second.finished
    assert second.allowed()[2 + ord("b")]


def test_a_grammar_that_leads_nowhere_on_the_way_ends_with_an_error(vocabulary: Vocabulary) -> None:
    endless = compiled(vocabulary, "grammar", 'start: "a" start')
    with pytest.raises(ConstraintError):  # noqa: PT012
        for _ in range(50):
            endless.allowed()
            endless.accept(2 + ord("b"))


def test_what_a_grammar_leaves_no_choice_about_is_foreseen(vocabulary: Vocabulary) -> None:
    constraint = compiled(vocabulary, "json_schema", json.dumps(NESTED))
    text = b"".join(vocabulary.token_bytes[token] for token in constraint.foreseen(7))
    assert text == b'{"name": "'
    assert len(constraint.foreseen(2)) == 2
    for token in constraint.foreseen(7):
        constraint.accept(token)
    assert constraint.foreseen(7) == [], "any string may follow"


@pytest.mark.parametrize("seed", range(6))
def test_to_foresee_changes_nothing(vocabulary: Vocabulary, seed: int) -> None:
    value = json.dumps(NESTED)
    asked, plain = (compiled(vocabulary, "json_schema", value) for _ in range(2))
    sampler = Sampler(Sampling(), seed=seed, prompt=())
    chance = np.random.default_rng(seed)
    foreseen = right = 0
    for position in range(150):
        guesses = asked.foreseen(5)
        twin = asked.copy()
        for token in guesses:
            assert twin.allowed()[token]
            twin.accept(token)
        mask = asked.allowed()
        assert np.array_equal(mask, plain.allowed())
        logits = chance.standard_normal(len(vocabulary)).astype(np.float32)
        token = sampler.sample(logits, position, mask)
        foreseen += bool(guesses)
        right += guesses[:1] == [token]
        if token == EOS:
            break
        asked.accept(token)
        plain.accept(token)
    assert 0 < right < foreseen
