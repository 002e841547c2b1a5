"""Constrained decoding: which tokens a JSON schema, regex or grammar allows next.

llguidance walks the grammar over the vocabulary's bytes. Whitespace is always compact (", "
between items, ": " after keys), so a model can't fill its answer with blanks. An answer that
ends by itself satisfies its constraint: what can't be enforced in full while decoding is
refused by name, never ignored.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from typing import Any

import llguidance
import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from maestrale.engines.base import Constraint
from maestrale.errors import ConstraintError
from maestrale.models.vocabulary import Vocabulary

MAX_CONSTRAINT_BYTES = 256 * 1024
FEW = 256  # allowed tokens; where there are more, they spell no one text
MAX_EXPLANATION = 400  # characters: errors quote the constraint, which may be long
VERSION: str = llguidance.__version__

_JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
_LABEL = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
# Without this llguidance spells text that the grammar leaves no choice about in its own way;
# the model's choice among the spellings is kept instead.
_PREAMBLE = '%llguidance {"no_forcing": true}\n'
_NAMED_TOKEN = re.compile(r"<\[(\d{1,9})\]>")
# Keywords whose value is a schema, a list of schemas, or an object of schemas.
_SUBSCHEMA = ("additionalItems", "additionalProperties", "items")
_SUBSCHEMA_LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_SUBSCHEMA_MAPS = ("$defs", "definitions", "patternProperties", "properties")


class TokenConstraint:
    """The state of one sequence's constraint. Made by `compile_constraint`."""

    def __init__(
        self, matcher: LLMatcher, vocabulary: Vocabulary, control_ids: NDArray[np.int64]
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._control_ids = control_ids
        self._mask: NDArray[np.bool_] | None = None  # of this state, once it was asked for
        self._next: tuple[int, TokenConstraint] | None = None  # a token, and the state after it

    def copy(self) -> TokenConstraint:
        """A constraint in the same state that goes its own way from here."""
        twin = TokenConstraint(self._matcher.deep_copy(), self._vocabulary, self._control_ids)
        twin._mask = self._mask
        return twin

    @property
    def finished(self) -> bool:
        """Nothing more may follow: the grammar is complete."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """[vocab], True where a token may come next; at least one may. Not to be changed.

        Raises: ConstraintError when the grammar grows past its limits, or leads nowhere.
        """
        if self._mask is None:
            self._mask = self._allowed()
        return self._mask

    def _allowed(self) -> NDArray[np.bool_]:
        size = len(self._vocabulary)
        bits = allocate_token_bitmask(1, size)
        fill_next_token_bitmask(self._matcher, bits)
        self._check()
        octets = bits.view(np.uint8)[0]
        mask = np.unpackbits(octets, count=size, bitorder="little").view(np.bool_)
        mask[self._control_ids] = False
        if not mask.any():
            raise ConstraintError("The constraint allows no text at this point.")
        return mask

    def accept(self, token: int) -> None:
        """Advance by the chosen token.

        Raises: ConstraintError when it is not allowed, or leads past the grammar's limits.
        """
        known, self._next, self._mask = self._next, None, None
        if known is not None and known[0] == token:
            state = known[1]
            self._matcher, self._mask, self._next = state._matcher, state._mask, state._next
        elif not self._matcher.consume_token(token):
            self._check()
            raise ConstraintError(f"Token {token} is not allowed by the constraint.")

    def foreseen(self, most: int) -> list[int]:
        """Up to `most` tokens that will probably come next; none where the grammar leaves a choice.

        Each is the longest of those that all spell the same text. The model may divide it in
        another way, and a shorter one can lead elsewhere where no longer token spells that.
        """
        tokens: list[int] = []
        state = self
        with contextlib.suppress(ConstraintError):  # it is met again where it counts
            while len(tokens) < most and (token := state._foreseen()) is not None:
                tokens.append(token)
                state = state._after(token)
        return tokens

    def _foreseen(self) -> int | None:
        if self.finished:
            return None
        mask = self.allowed()
        if np.count_nonzero(mask) > FEW or mask[list(self._vocabulary.eos_token_ids)].any():
            return None
        text = self._vocabulary.token_bytes
        choices = sorted(np.flatnonzero(mask).tolist(), key=lambda token: len(text[token]))
        # What the first and the last of the longer ones begin with, all of them do.
        first = last = text[choices[-1]]
        longest = None
        for token in reversed(choices):
            first, last = min(first, text[token]), max(last, text[token])
            if not (first.startswith(text[token]) and last.startswith(text[token])):
                longest = None
            elif longest is None:
                longest = token
        return longest if longest is not None and text[choices[0]] else None

    def _after(self, token: int) -> TokenConstraint:
        if self._next is None or self._next[0] != token:
            state = self.copy()
            state.accept(token)
            self._next = (token, state)
        return self._next[1]

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(_explain("constraint", self._matcher.get_error()))


def compile_constraint(constraint: Constraint, vocabulary: Vocabulary) -> TokenConstraint:
    """Compile a constraint and find the tokens that may come first.

    Raises: ConstraintError when it is malformed, unsatisfiable, too large, or uses what can't
    be enforced while decoding. Takes no longer than llguidance's limits allow (about a second
    for the largest).
    """
    label = _LABEL[constraint.kind]
    grammar = grammar_text(constraint)
    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(_tokenizer(vocabulary), grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise ConstraintError(_explain(label, matcher.get_error()))
    controls = set(vocabulary.control_ids.values()) - set(vocabulary.eos_token_ids)
    if constraint.kind == "grammar":
        controls -= {int(token) for token in _NAMED_TOKEN.findall(constraint.value)}
    compiled = TokenConstraint(matcher, vocabulary, np.array(sorted(controls), np.int64))
    compiled.allowed()
    return compiled


def grammar_text(constraint: Constraint) -> str:
    """The constraint as a grammar in llguidance's form of Lark, with compact whitespace.

    Raises: ConstraintError when it is malformed or too large. It is not compiled here.
    """
    label = _LABEL[constraint.kind]
    try:
        texts = (constraint.value, *(schema for _, schema in constraint.schemas))
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise ConstraintError(f"The {label} contains half a character (a surrogate).") from error
    if size > MAX_CONSTRAINT_BYTES:
        raise ConstraintError(f"The {label} is larger than {MAX_CONSTRAINT_BYTES} bytes.")
    if any("\0" in text for text in texts):
        raise ConstraintError(f"The {label} contains a NUL character.")
    try:
        return _grammar(constraint)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(_explain(label, str(error))) from error


def _grammar(constraint: Constraint) -> str:
    """llguidance's form of the constraint. Raises: ValueError, RecursionError."""
    if constraint.kind == "regex":
        # \\d and \\w mean ASCII, as in JSON schema's patterns.
        pattern = regex_to_lark(constraint.value, use_ascii="dw")
        return f"{_PREAMBLE}start: /{pattern}/"
    if constraint.kind == "grammar":
        if "%llguidance" in constraint.value:
            raise ValueError("the directive '%llguidance' is not allowed")
        rules = [f"{name}: {_json_rule(schema)}" for name, schema in constraint.schemas]
        return "\n".join([_PREAMBLE + constraint.value, *rules])
    return f"{_PREAMBLE}start: {_json_rule(constraint.value)}"


def _json_rule(document: str) -> str:
    """The body of a rule for JSON of this schema. Raises: ValueError, RecursionError."""
    try:
        schema = msgspec.json.decode(document)
    except msgspec.DecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    schema = {} if schema is True else schema
    if schema is False:
        raise ValueError("the schema is `false`, which nothing satisfies")
    if not isinstance(schema, dict):
        raise ValueError("a schema must be an object or a boolean")
    if "x-guidance" in schema:
        raise ValueError("the keyword 'x-guidance' is not allowed")
    text = json.dumps({"x-guidance": _JSON_OPTIONS, **_enforceable(schema)}, allow_nan=False)
    return f"%json {text}"


def _enforceable(schema: Any) -> Any:
    """The schema with what llguidance would enforce by halves refused, and no-ops dropped.

    Raises: ValueError naming the keyword.
    """
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    if result.get("uniqueItems") is False:
        del result["uniqueItems"]
    least = result.get("minProperties", 0)
    named = result.get("required", [])
    # Additional keys may repeat, and a repeated key counts once.
    if isinstance(least, int) and least > max(1, len(named) if isinstance(named, list) else 0):
        raise ValueError(
            "the keyword 'minProperties' above the number of 'required' properties can't be "
            "enforced while decoding"
        )
    step = result.get("multipleOf", 1)
    if isinstance(step, float) and not step.is_integer():
        raise ValueError(
            "the keyword 'multipleOf' with a fraction can't be enforced: validators disagree "
            "on it for floating-point numbers"
        )
    for key in _SUBSCHEMA:
        if isinstance(result.get(key), dict):
            result[key] = _enforceable(result[key])
    for key in _SUBSCHEMA_LISTS:
        if isinstance(result.get(key), list):
            result[key] = [_enforceable(item) for item in result[key]]
    for key in _SUBSCHEMA_MAPS:
        if isinstance(result.get(key), dict):
            result[key] = {name: _enforceable(item) for name, item in result[key].items()}
    return result


def _explain(label: str, reason: str) -> str:
    """llguidance's error as one short sentence for the author of the constraint."""
    text = _sentence(label, reason)
    return text if len(text) <= MAX_EXPLANATION else text[:MAX_EXPLANATION] + "…"


def _sentence(label: str, reason: str) -> str:
    unknown = re.search(r"Unimplemented keys: \[(.*)\]", reason)
    if unknown:
        names = unknown.group(1).replace('"', "'")
        return (
            f"The {label} can't be used: the keyword {names} can't be enforced while decoding. "
            "Remove it, or say the same with supported keywords."
        )
    if "Default retriever" in reason or "not present in a registry" in reason:
        return f"The {label} can't be used: a '$ref' may only point inside the schema itself."
    if "oneOf constraints are not supported" in reason:
        return (
            f"The {label} can't be used: the keyword 'oneOf' needs alternatives that exclude each "
            "other (by type, or by a 'const' property). Use 'anyOf' instead."
        )
    if re.search(r"too big|[Tt]oo many items|[Tt]oo complex|recursion", reason):
        return f"The {label} can't be used: it is too large, too deep, or never ends."
    if reason.startswith("NoExtension"):
        return f"The {label} can't be used: no text satisfies it."
    # Leave out the excerpt of the grammar: its lines are ours, not the author's.
    text = re.split(r"\n\s+\d+ \| |\s*<non-verbose/>", reason, maxsplit=1)[0].rstrip()
    text = text.replace("failed to compile JSON schema: ", "")
    place = re.match(r"at (\d+)\((\d+)\): ", text)
    if place and label == "grammar":
        line = int(place.group(1)) - _PREAMBLE.count("\n")
        return f"The {label} can't be used: line {line}: {text[place.end() :]}"
    return f"The {label} can't be used: {text[place.end() :] if place else text}"


class _TokenTable:
    """What LLTokenizer asks of a tokenizer: the bytes of each token."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        names = {token: name for name, token in vocabulary.control_ids.items()}
        self.tokens = [
            text or names.get(token, f"<|unused_{token}|>").encode()
            for token, text in enumerate(vocabulary.token_bytes)
        ]
        self.special_token_ids = [
            token for token, text in enumerate(vocabulary.token_bytes) if not text or token in names
        ]
        self.eos_token_id = vocabulary.eos_token_ids[0]

    def __call__(self, text: bytes) -> list[int]:
        """Asked for only where text is forced, which `_PREAMBLE` turns off."""
        raise NotImplementedError


_lock = threading.Lock()
_latest: tuple[Vocabulary, LLTokenizer] | None = None


def index(vocabulary: Vocabulary) -> None:
    """Build now what the first constraint would else wait for, and everyone with it (the GIL)."""
    _tokenizer(vocabulary)


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """llguidance's index of the vocabulary, built once (0.2 s and 20 MB for 49,152 tokens)."""
    global _latest
    with _lock:
        if _latest is None or _latest[0] is not vocabulary:
            table = _TokenTable(vocabulary)
            _latest = (vocabulary, LLTokenizer(table, eos_token=list(vocabulary.eos_token_ids)))
        return _latest[1]
