"""What an answer is constrained to, in each of the ways that clients say it, as one constraint.

OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`, llama.cpp's `json_schema`
and `grammar`, Ollama's `format`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from maestrale.api.openai.schemas import OtherNames, ResponseFormat, StructuredOutputs
from maestrale.chat.options import ANY_OBJECT, MAX_SCHEMA_BYTES, schema_constraint
from maestrale.engines.base import Constraint
from maestrale.errors import InvalidRequest, Sent, UnsupportedParameter

Placed = tuple[Constraint, Sent]
# Which tokens there are is no business of a text's grammar; nor what a schema is written in.
_NAMED_TOKENS = re.compile(r"<\[[^\]\n]*\]>")
_DIRECTIVES = re.compile(r"%(?:llguidance|json|lark)\b")


def read_constraint(body: OtherNames, form: ResponseFormat | None = None) -> Placed | None:
    """What the body constrains the answer to, and which field says so; `form`: OpenAI's.

    Raises: InvalidRequest where it is malformed, or said twice; UnsupportedParameter.
    """
    found: list[Placed] = []
    if form is not None and (constraint := of_response_format(form)) is not None:
        found.append((constraint, Sent("response_format")))
    if body.structured_outputs is not None:
        found += _structured(body.structured_outputs)
    found += _of_names(body)
    if len(found) > 1:
        raise InvalidRequest(
            f"'{found[0][1]}' and '{found[1][1]}' both say what the answer must be; give one.",
            at=found[1][1],
        )
    return found[0] if found else None


def of_response_format(form: ResponseFormat) -> Constraint | None:
    """What `response_format` constrains decoding to. Raises: InvalidRequest."""
    at = Sent("response_format")
    if form.json_schema is not None and form.type != "json_schema":
        raise InvalidRequest(
            f"'json_schema' has no effect with type '{form.type}'; for an answer by the "
            "schema the type is 'json_schema'.",
            at=at.at("type"),
        )
    raw, schema_at = bytes(form.schema), at.at("schema")
    if raw != b"null":
        if form.type == "text" or form.json_schema is not None:
            raise InvalidRequest(
                "'schema' is for the type 'json_object', or 'json_schema' without another.",
                at=schema_at,
            )
    elif form.type == "text":
        return None
    elif form.type == "json_object":
        return ANY_OBJECT
    elif form.json_schema is None:
        raise InvalidRequest("'response_format' needs 'json_schema'.", at=at.at("json_schema"))
    else:
        raw, schema_at = bytes(form.json_schema.schema), at.at("json_schema", "schema")
    if raw == b"null":
        raise InvalidRequest("'response_format.json_schema' needs 'schema'.", at=schema_at)
    return schema_constraint(raw, schema_at)


def _structured(said: StructuredOutputs) -> Iterator[Placed]:
    """vLLM's object. Raises: InvalidRequest, UnsupportedParameter."""
    at = Sent("structured_outputs")
    for name, reason in (
        ("structural_tag", "use 'json', or tools"),
        ("whitespace_pattern", "JSON has the layout that the model prefers"),
        ("disable_any_whitespace", "JSON has the layout that the model prefers"),
        ("disable_additional_properties", 'say it in the schema: "additionalProperties": false'),
    ):
        if getattr(said, name):
            raise UnsupportedParameter(
                f"'{at.at(name)}' is not supported: {reason}.", at=at.at(name)
            )
    yield from _schema(said.json, at.at("json"))
    yield from _text("regex", said.regex, at.at("regex"))
    yield from _choice(said.choice, at.at("choice"))
    yield from _text("grammar", said.grammar, at.at("grammar"))
    if said.json_object:
        yield ANY_OBJECT, at.at("json_object")


def _of_names(body: OtherNames) -> Iterator[Placed]:
    """The fields that say it by themselves. Raises: InvalidRequest, UnsupportedParameter."""
    yield from _schema(body.guided_json, Sent("guided_json"))
    yield from _text("regex", body.guided_regex, Sent("guided_regex"))
    yield from _choice(body.guided_choice, Sent("guided_choice"))
    yield from _text("grammar", body.guided_grammar, Sent("guided_grammar"))
    yield from _text("grammar", body.grammar, Sent("grammar"))
    yield from _schema(body.json_schema, Sent("json_schema"))
    word = bytes(body.format)
    if word == b'"json"':
        yield ANY_OBJECT, Sent("format")
    elif word[:1] == b'"' and word[:2] not in (b'"{', b'""'):
        raise InvalidRequest("'format' is 'json' or a JSON schema.", at=Sent("format"))
    else:
        yield from _schema(body.format, Sent("format"))


def _schema(raw: Raw, at: Sent) -> Iterator[Placed]:
    """A schema, or its text. Raises: InvalidRequest."""
    written = bytes(raw)
    if written[:1] == b'"':
        text: Any = msgspec.json.decode(written)
        written = text.encode(errors="replace")
    if written not in (b"null", b"false", b""):
        yield schema_constraint(written, at), at


def _text(kind: Any, text: str | None, at: Sent) -> Iterator[Placed]:
    """A regular expression, or a grammar. Raises: InvalidRequest, UnsupportedParameter."""
    if not text:
        return
    _check_size(len(text.encode(errors="replace")), at)
    if kind == "grammar":
        for pattern, what in ((_NAMED_TOKENS, "tokens by id"), (_DIRECTIVES, "a directive")):
            if found := pattern.search(text):
                raise UnsupportedParameter(
                    f"'{at}' has {what}, {found[0][:40]}, which a grammar from a request can't "
                    "have: it describes text.",
                    at=at,
                )
    yield Constraint(kind, text), at


def _choice(texts: Sequence[str] | None, at: Sent) -> Iterator[Placed]:
    """One of these texts. Raises: InvalidRequest."""
    if not texts:
        return
    pattern = "|".join(map(_escaped, dict.fromkeys(texts)))
    _check_size(len(pattern.encode(errors="replace")), at)
    yield Constraint("regex", f"({pattern})"), at


def _escaped(text: str) -> str:
    """The text as a regular expression that matches it alone."""
    return "".join(
        each if each.isalnum() or each in " _<>%" or not each.isascii() else f"\\x{ord(each):02x}"
        for each in text
    )


def _check_size(size: int, at: Sent) -> None:
    if size > MAX_SCHEMA_BYTES:
        raise InvalidRequest(
            f"'{at}' has {size} bytes; up to {MAX_SCHEMA_BYTES} are allowed.", at=at
        )
