"""Text between control tokens → ids, by the tokenizer's own library; no text gives a control token.

Tokenizers that write a space before a prompt's first word only are asked in two ways: for text
at the very beginning, and for all that comes later.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, Protocol

import msgspec
from tokenizers import Tokenizer

from maestrale.errors import ModelError
from maestrale.models.sentencepiece_model import SentencePieceModel


class PlainText(Protocol):
    """Encodes text in which nothing is a control token."""

    def encode(self, text: str, *, first: bool) -> list[int]:
        """The ids of a text, which is not empty. `first`: a prompt begins with it."""

    def encode_inner(self, text: str) -> list[int]:
        """The ids of a text that goes on within a line: no space is put before it."""


def plain_text(tokenizer: Mapping[str, Any], markers: Collection[str]) -> PlainText:
    """For the document of a tokenizer.json, or {"sentencepiece": model, "prefix_first_only": bool}.

    Raises: ModelError when it can't be used.
    """
    model = tokenizer.get("sentencepiece")
    if isinstance(model, SentencePieceModel):
        model = model.without(markers)
        first_only = tokenizer.get("prefix_first_only") is True and model.dummy_prefix
        later = model.without_prefix() if first_only else model
        return _SentencePieceText(model, later)
    return _TokenizerText(tokenizer, markers)


class _TokenizerText:
    def __init__(self, tokenizer: Mapping[str, Any], markers: Collection[str]) -> None:
        document = _without(tokenizer, markers)
        written = _written(document)
        self._first = self._later = _built(written)
        cut = json.dumps(document.get("pre_tokenizer"))
        if '"prepend_scheme": "first"' in cut:
            cut = cut.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
            self._later = _built(_written({**document, "pre_tokenizer": json.loads(cut)}))
        # Read, the document takes ten times the memory; few models need it again.
        parts = {key: document.get(key) for key in ("normalizer", "pre_tokenizer")}
        self._puts_before = written if _without_prefix(parts) != parts else None

    def encode(self, text: str, *, first: bool) -> list[int]:
        tokenizer = self._first if first else self._later
        # Of the ways to encode, only those for batches let other threads of Python run.
        ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def encode_inner(self, text: str) -> list[int]:
        ids: list[int] = self._inner.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    @cached_property
    def _inner(self) -> Tokenizer:
        if self._puts_before is None:
            return self._first
        document = msgspec.json.decode(self._puts_before, type=dict[str, Any])
        parts = {key: document.get(key) for key in ("normalizer", "pre_tokenizer")}
        return _built(_written({**document, **_without_prefix(parts)}))


class _SentencePieceText:
    def __init__(self, first: SentencePieceModel, later: SentencePieceModel) -> None:
        self._first = self._later = _processor(first)
        self._model = first
        if later is not first:
            self._later = _processor(later)

    def encode(self, text: str, *, first: bool) -> list[int]:
        ids: list[int] = (self._first if first else self._later).encode(text)
        return ids

    def encode_inner(self, text: str) -> list[int]:
        ids: list[int] = self._inner.encode(text)
        return ids

    @cached_property
    def _inner(self) -> Any:
        model = self._model
        return _processor(model.without_prefix()) if model.dummy_prefix else self._first


def _processor(model: SentencePieceModel) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model.serialized())
    except (RuntimeError, OSError) as error:
        raise ModelError(f"The SentencePiece tokenizer can't be used: {error}") from error


def _without_prefix(part: Any) -> Any:
    """Of a tokenizer.json's parts: the same, but that no space is put before a text."""
    if isinstance(part, list):
        return [_without_prefix(each) for each in part if not _prepends(each)]
    if not isinstance(part, dict):
        return part
    kept = {key: None if _prepends(each) else _without_prefix(each) for key, each in part.items()}
    if "prepend_scheme" in kept:
        kept["prepend_scheme"] = "never"
    if "add_prefix_space" in kept:
        kept["add_prefix_space"] = False
    return kept


def _prepends(step: Any) -> bool:
    return isinstance(step, dict) and step.get("type") == "Prepend"


def _written(document: Mapping[str, Any]) -> bytes:
    """The document as a tokenizer.json."""
    return msgspec.json.encode(document)


def _built(written: bytes) -> Tokenizer:
    """Raises: ModelError when it can't be used."""
    try:
        return Tokenizer.from_buffer(written)
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"The tokenizer can't be used: {error}") from error


def _without(tokenizer: Mapping[str, Any], markers: Collection[str]) -> dict[str, Any]:
    """A tokenizer.json that can't give a marker's id, whatever the text."""
    document = {**tokenizer, "truncation": None, "padding": None}
    others = [
        token for token in tokenizer.get("added_tokens") or () if token["content"] not in markers
    ]
    document["added_tokens"] = others
    vocab = document["model"]["vocab"]
    # Entries stay, so that ids stay; their names are such as no text is cut into.
    if isinstance(vocab, dict):
        vocab = {(f"\ufdd0{id_}" if name in markers else name): id_ for name, id_ in vocab.items()}
        vocab.update({token["content"]: token["id"] for token in others})
    else:  # Unigram's: pairs of text and score
        vocab = [
            [f"\ufdd0{token}" if name in markers else name, score]
            for token, (name, score) in enumerate(vocab)
        ]
    document["model"] = {**document["model"], "vocab": vocab}
    merges = document["model"].get("merges")
    if merges:
        document["model"]["merges"] = [merge for merge in merges if not _makes(merge, markers)]
    return document


def _makes(merge: str | list[str], markers: Collection[str]) -> bool:
    """Whether a marker is a part of a BPE's merge, or what it makes: a word may be one."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in markers or right in markers or left + right in markers
