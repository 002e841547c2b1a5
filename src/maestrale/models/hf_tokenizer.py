"""What a Hugging Face `tokenizer.json` says of each token: its bytes, and whose tokenizer it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.byte_level import decode_byte_level
from maestrale.models.mistral_vocabulary import recognise
from maestrale.models.vocabulary import Vocabulary

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def mistral_version_of(tokenizer: Mapping[str, Any], template: str | None) -> str | None:
    """The version of Mistral's tokenizer that this is, piece by piece, or None."""
    entries = ids_of(tokenizer)
    if not entries or sorted(entries.values()) != list(range(len(entries))):
        return None
    pieces = sorted(entries, key=lambda piece: entries[piece])
    metadata: dict[str, Any] = {
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.chat_template": template,
        "tokenizer.ggml.model": "gpt2" if _is_byte_level(tokenizer) else "llama",
        "tokenizer.ggml.pre": "tekken",
    }
    return recognise(metadata)


def hf_vocabulary(tokenizer: Mapping[str, Any], size: int, ends: tuple[int, ...]) -> Vocabulary:
    """What each token spells, for `size` rows of logits.

    Raises: ModelError for tokenizers that are neither byte-level BPE nor SentencePiece's BPE.
    """
    byte_level = _is_byte_level(tokenizer)
    leading = not byte_level and _sentencepiece_prefix(tokenizer)
    spelled = [b""] * size
    control: dict[str, int] = {}
    entries: dict[int, bytes] = {}
    for piece, token in tokenizer["model"]["vocab"].items():
        entries[token] = decode_byte_level(piece) if byte_level else _spell(piece)
    for added in tokenizer.get("added_tokens", ()):
        entries[added["id"]] = b"" if added["special"] else added["content"].encode()
        if added["special"]:
            control[added["content"]] = added["id"]
    if entries and max(entries) >= size:
        raise ModelError(f"The tokenizer has {max(entries) + 1} tokens, the model only {size}.")
    for token, spelling in entries.items():
        spelled[token] = spelling
    return Vocabulary(
        token_bytes=tuple(spelled),
        control_ids=control,
        eos_token_ids=ends,
        leading_space=leading,
    )


def ids_of(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """The id of each token of a tokenizer.json by its text, added ones too."""
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    entries = dict(vocab) if isinstance(vocab, Mapping) else {}
    if isinstance(vocab, list):  # Unigram's: pairs of text and score
        entries = {entry[0]: token for token, entry in enumerate(vocab)}
    for added in tokenizer.get("added_tokens") or ():
        entries[added["content"]] = added["id"]
    return entries


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps(tokenizer.get("decoder"))


def _sentencepiece_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece BPE writes a space before a text's first word.

    Raises: ModelError when it is no such tokenizer, or treats the first word of a prompt unlike
    the first after a control token: prompts are encoded piece by piece here.
    """
    model = tokenizer.get("model")
    if (
        not isinstance(model, Mapping)
        or model.get("type") != "BPE"
        or not model.get("byte_fallback")
    ):
        raise ModelError(
            "The folder's tokenizer is neither a byte-level BPE nor SentencePiece's BPE, the "
            "kinds of Hugging Face tokenizer that are served here."
        )
    cutting = json.dumps(tokenizer.get("pre_tokenizer"))
    if '"prepend_scheme": "first"' in cutting:
        raise ModelError(
            "The folder's tokenizer writes a space before the first word of a prompt only "
            "(prepend_scheme 'first'), which is not served here."
        )
    return '"Prepend"' in json.dumps(tokenizer.get("normalizer")) or '"always"' in cutting


def _spell(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()
