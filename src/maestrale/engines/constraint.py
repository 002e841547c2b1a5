"""Constrained decoding: which tokens a JSON schema, regex or grammar allows next.

llguidance walks the grammar over the vocabulary's bytes. An answer that ends by itself satisfies
its constraint: what can't be enforced in full while decoding is refused by name, never ignored.
"""

from __future__ import annotations

import contextlib
import re
import threading

import llguidance
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from maestrale.engines.base import Constraint
from maestrale.engines.gbnf import is_gbnf, lark_of
from maestrale.engines.schema.grammar import rules
from maestrale.errors import ConstraintError
from maestrale.models.vocabulary import Vocabulary

MAX_CONSTRAINT_BYTES = 256 * 1024
FEW = 256  # allowed tokens; where there are more, they spell no one text
MAX_EXPLANATION = 400  # characters: errors quote the constraint, which may be long
VERSION: str = llguidance.__version__

_LABEL = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
# Without this llguidance spells text that the grammar leaves no choice about in its own way;
# the model's choice among the spellings is kept instead.
_PREAMBLE = '%llguidance {"no_forcing": true}\n'
_NAMED_TOKEN = re.compile(r"<\[(\d{1,9})\]>")


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
        inner = [each.value for _, each in constraint.nested if each.kind == "grammar"]
        named = _NAMED_TOKEN.findall("\n".join([constraint.value, *inner]))
        controls -= set(map(int, named))
    compiled = TokenConstraint(matcher, vocabulary, np.array(sorted(controls), np.int64))
    try:
        compiled.allowed()
    except ConstraintError:
        reason = matcher.get_error() if matcher.is_error() else "NoExtension"
        raise ConstraintError(_explain(label, reason)) from None
    return compiled


def grammar_text(constraint: Constraint) -> str:
    """The constraint as a grammar in llguidance's form of Lark; what is written already, as it is.

    Raises: ConstraintError when it is malformed or too large. It is not compiled here.
    """
    if constraint.written:
        return constraint.written
    label = _LABEL[constraint.kind]
    try:
        texts = _texts(constraint)
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise ConstraintError(f"The {label} contains half a character (a surrogate).") from error
    if size > MAX_CONSTRAINT_BYTES:
        raise ConstraintError(f"The {label} is larger than {MAX_CONSTRAINT_BYTES} bytes.")
    if any("\0" in text for text in texts):
        raise ConstraintError(f"The {label} contains a NUL character.")
    try:
        return _grammar(constraint)
    except ValueError as error:
        raise ConstraintError(_short(f"The {label} can't be used: {error}.")) from error
    except RecursionError as error:
        raise ConstraintError(f"The {label} can't be used: it is nested too deep.") from error


def _texts(constraint: Constraint) -> list[str]:
    texts = [constraint.value, *(schema for _, schema in constraint.schemas)]
    return texts + [text for _, inner in constraint.nested for text in _texts(inner)]


def _grammar(constraint: Constraint) -> str:
    """llguidance's form of the constraint. Raises: ValueError, RecursionError."""
    if constraint.kind == "grammar":
        return _PREAMBLE + _lark(constraint)
    return _PREAMBLE + _rule("start", constraint)


def _rule(name: str, constraint: Constraint) -> str:
    """Lark rules of which `name` is the constraint. Raises: ValueError, RecursionError."""
    if constraint.kind == "regex":
        # \\d and \\w mean ASCII, as in JSON schema's patterns.
        pattern = regex_to_lark(constraint.value, use_ascii="dw")
        return f"{name}: /{pattern}/"
    if constraint.kind == "grammar":
        return f"{name}: %lark {{\n{_lark(constraint)}\n}}"
    return rules(name, constraint.value)


def _lark(constraint: Constraint) -> str:
    if "%llguidance" in constraint.value:
        raise ValueError("the directive '%llguidance' is not allowed")
    written = [rules(name, schema) for name, schema in constraint.schemas]
    written += [_rule(name, inner) for name, inner in constraint.nested]
    value = lark_of(constraint.value) if is_gbnf(constraint.value) else constraint.value
    return "\n".join([value, *written])


def _explain(label: str, reason: str) -> str:
    """llguidance's error as one short sentence for the author of the constraint."""
    return _short(f"The {label} can't be used: {_said(label, reason)}.")


def _short(text: str) -> str:
    return text if len(text) <= MAX_EXPLANATION else text[:MAX_EXPLANATION] + "…"


def _said(label: str, reason: str) -> str:
    if reason.startswith("NoExtension") or "Unsatisfiable" in reason:
        return "no text satisfies it"
    if label != _LABEL["json_schema"]:
        # What is wrong in the author's own text. The excerpt of the grammar around it is not.
        text = re.split(r"\n\s+\d+ \| |\s*<non-verbose/>", reason, maxsplit=1)[0].rstrip()
        inner = re.search(r"^error: (.*)$", text, re.MULTILINE)  # in a regular expression
        place = re.match(r"(?:at )?(\d+)\((\d+)\): ", text)
        if label == _LABEL["regex"]:
            if inner:
                return inner.group(1)
            if "lookarounds not supported" in text:
                return "word boundaries, and anchors in the middle, are not supported"
        if place and label == _LABEL["grammar"]:
            text = inner.group(1) if inner else text[place.end() :].split("; ")[0]
            text = text.replace("lexer error", "an unfinished text, or a character without meaning")
            line = int(place.group(1)) - _PREAMBLE.count("\n")
            return f"line {line}: {text}"
        if re.match("no start rule|unknown grammar|failed to parse", text):
            return text
    return "it is too large, too deep, or never ends"


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
