"""A GGUF file's byte-level BPE, as a Hugging Face `tokenizer.json` and a vocabulary; and what its
tokens of any kind are: control tokens, and those that end an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.fim_tokens import marks_in
from maestrale.models.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, byte_level
from maestrale.models.vocabulary import Vocabulary, decode_byte_level

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space
_KINDS_WITH_ADDED = (CONTROL, USER_DEFINED)
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# Tokens that end a turn or a text, under whatever name a model family gives them. Those of the
# second row are words of other models' texts as well: they must be control tokens.
_END_NAMES = frozenset({
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>",
    "<|end_of_turn|>", "<end_of_turn>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>",
    "<end_of_utterance>", "<turn|>", "<|END_OF_TURN_TOKEN|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
})  # fmt: skip
_END_CONTROLS = frozenset({"</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~["})
# In gpt-oss's format and its kin <|end|> stands between the messages of one answer.
_BETWEEN = ("<|end|>", ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"}))


def byte_level_tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The `tokenizer.json` document of a GGUF file whose tokenizer is byte-level BPE.

    Raises: ModelError when how it cuts text isn't known, or its merges are missing.
    """
    cut = pre_tokenizer_of(metadata)
    pieces, types = pieces_of(metadata)
    merges: Any = metadata.get("tokenizer.ggml.merges")
    if not _is_list_of(merges, str) or not all(" " in merge[1:] for merge in merges):
        raise ModelError("The GGUF file has a BPE tokenizer without merges; it can't be used.")
    added = [
        {
            "id": token,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for token, (piece, kind) in enumerate(zip(pieces, types, strict=True))
        if kind in _KINDS_WITH_ADDED
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(cut),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(cut.steps)},
        "post_processor": None,
        "decoder": _decoder(cut),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": cut.escaped,
            "ignore_merges": cut.whole_words,
            "vocab": {piece: token for token, piece in enumerate(pieces)},
            "merges": [_parts(merge) for merge in merges],
        },
    }


def byte_level_vocabulary(metadata: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """What each token of a byte-level BPE spells, for `vocab_size` rows of logits."""
    pieces, types = pieces_of(metadata)
    spell = spelling if pre_tokenizer_of(metadata).escaped else decode_byte_level
    ends = frozenset(end_token_ids(metadata))
    spelled = [b""] * max(vocab_size, len(pieces))
    for token, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
        if kind in (NORMAL, BYTE):
            spelled[token] = spell(piece)
        elif kind == USER_DEFINED and token not in ends:
            spelled[token] = piece.encode()
    return Vocabulary(
        token_bytes=tuple(spelled),
        control_ids=control_ids(metadata),
        eos_token_ids=end_token_ids(metadata),
    )


def pieces_of(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The vocabulary's entries and their types, in order of id.

    Raises: ModelError when the file has no vocabulary.
    """
    pieces: Any = metadata.get("tokenizer.ggml.tokens")
    if not _is_list_of(pieces, str) or not pieces:
        raise ModelError("The GGUF file has no tokenizer in it; it can't be served by itself.")
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(pieces)
    if not _is_list_of(types, int) or len(types) != len(pieces):
        raise ModelError("The GGUF file is damaged: its token types don't match its tokens.")
    if marks := marks_in(pieces, metadata):  # converters flag them in many ways
        types = [CONTROL if token in marks else kind for token, kind in enumerate(types)]
    return pieces, types


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {kind}


def spelling(piece: str) -> bytes:
    """The bytes of a SentencePiece vocabulary's entry."""
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def pre_tokenizer_of(metadata: Mapping[str, Any]) -> PreTokenizer:
    """How a byte-level BPE cuts text. Raises: ModelError when that isn't known."""
    name = metadata.get("tokenizer.ggml.pre") or "default"
    found = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
    if found is None:
        why = (
            "doesn't say how its tokenizer cuts text (tokenizer.ggml.pre): it was made by an old "
            "converter"
            if name == "default"
            else f"has a tokenizer that cuts text the way called {name!r}, which isn't known here"
        )
        raise ModelError(
            f"The GGUF file {why}, and a guess would give wrong tokens. Take a newer GGUF file of "
            "the model, or its folder with safetensors."
        )
    return found


def _normalizer(cut: PreTokenizer) -> dict[str, Any] | None:
    if cut.escaped:
        return {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {"type": "NFC"} if cut.composed else None


def _decoder(cut: PreTokenizer) -> dict[str, Any]:
    if not cut.escaped:
        return byte_level(use_regex=True)
    return {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    }


def _parts(merge: str) -> list[str]:
    """The two pieces of a merge; the first character is never the space between them."""
    at = merge.index(" ", 1)
    return [merge[:at], merge[at + 1 :]]


def control_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The control tokens by name, with those that end an answer."""
    pieces, types = pieces_of(metadata)
    ends = frozenset(_ends(metadata, pieces, types))
    return {
        piece: token
        for token, (piece, kind) in enumerate(zip(pieces, types, strict=True))
        if kind == CONTROL or token in ends
    }


def end_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer: those the file names, then tokens known to end turns.

    Raises: ModelError when there is none.
    """
    ids = _ends(metadata, *pieces_of(metadata))
    if not ids:
        raise ModelError("The GGUF file names no end-of-text token, so answers would never end.")
    return ids


def _ends(
    metadata: Mapping[str, Any], pieces: Sequence[str], types: Sequence[int]
) -> tuple[int, ...]:
    named = [token_id(metadata, key, len(pieces)) for key in ("eos", "eot", "eom")]
    known = {
        piece: token
        for token, (piece, kind) in enumerate(zip(pieces, types, strict=True))
        if (kind in _KINDS_WITH_ADDED and piece in _END_NAMES)
        or (kind == CONTROL and piece in _END_CONTROLS)
    }
    between, companions = _BETWEEN
    dropped = known.get(between) if any(both <= known.keys() for both in companions) else None
    ids = dict.fromkeys([*(id_ for id_ in named if id_ is not None), *known.values()])
    return tuple(id_ for id_ in ids if id_ != dropped)


def token_id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    """The id that the file gives the special token `name` (bos, eos ...) of `count` tokens."""
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count
    return value if known else None
