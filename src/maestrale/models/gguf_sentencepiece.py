"""A GGUF file's SentencePiece vocabulary, put together again for the library it comes from.

The file keeps pieces, scores and types; whether the model merges pairs (BPE) or weighs whole
cuts (Unigram) is told by the scores: BPE's are the ranks of its merges, whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    control_ids,
    pieces_of,
    token_id,
)
from maestrale.models.sentencepiece_model import (
    BPE,
    UNIGRAM,
    Piece,
    SentencePieceModel,
    new_model,
)

_KINDS = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
# Phi-3's control tokens, but for these, take the blanks behind them; its GGUF files don't say so.
_PHI3_KEEPS_BLANKS = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def sentencepiece_model(metadata: Mapping[str, Any]) -> SentencePieceModel:
    """The model that a GGUF file of the tokenizer kind "llama" was made from.

    Raises: ModelError when what it takes is missing or damaged.
    """
    pieces, kinds = pieces_of(metadata)
    scores: Any = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(pieces):
        raise ModelError(
            "The GGUF file has a SentencePiece tokenizer without scores, so its pieces can't be "
            "merged in their order. Take another GGUF file of the model, or its safetensors."
        )
    scores = [float(score) for score in scores[: len(pieces)]]
    unknown = _unknown(metadata, pieces, kinds)
    ends = set(control_ids(metadata).values())
    seen: set[str] = set()
    built = []
    for token, (text, score, kind) in enumerate(zip(pieces, scores, kinds, strict=True)):
        kind = kind if kind in _KINDS else NORMAL
        if token == unknown:
            kind = UNKNOWN
        elif kind == UNKNOWN or token in ends:
            kind = CONTROL
        if kind == USER_DEFINED:  # converters write its spaces as such
            text = text.replace(" ", SPACE)
        if not text or text in seen:  # what the library doesn't take; no text gives it either way
            text, kind = f"\ufdd0{token}", UNUSED
        seen.add(text)
        built.append(Piece(text, score, kind))
    if unknown is None:
        built.append(Piece("\ufdd0unknown", 0.0, UNKNOWN))
    normal = (piece.score for piece in built if piece.kind == NORMAL)
    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap")
    return new_model(
        tuple(built),
        kind=BPE if all(score.is_integer() for score in normal) else UNIGRAM,
        dummy_prefix=_flag(metadata, "add_space_prefix", True),
        remove_extra_blanks=_flag(metadata, "remove_extra_whitespaces", False),
        charsmap=bytes(byte & 0xFF for byte in charsmap) if isinstance(charsmap, list) else b"",
    )


def added_tokens(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Control and user-defined tokens, as a tokenizer.json has them."""
    pieces, kinds = pieces_of(metadata)
    control = control_ids(metadata)
    name = str(metadata.get("general.name", "")).lower()
    phi3 = "phi-3" in name or "phi3" in name or metadata.get("general.architecture") == "phi3"
    return [
        {
            "id": token,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": phi3 and piece in control and piece not in _PHI3_KEEPS_BLANKS,
            "normalized": False,
            "special": piece in control,
        }
        for token, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
        if kind == USER_DEFINED or piece in control
    ]


def _unknown(metadata: Mapping[str, Any], pieces: list[str], kinds: list[int]) -> int | None:
    """The one token that stands for what the vocabulary can't spell."""
    stated = token_id(metadata, "unknown", len(pieces))
    if stated is not None and kinds[stated] in (UNKNOWN, CONTROL):
        return stated
    found = [token for token, kind in enumerate(kinds) if kind == UNKNOWN]
    if found:
        return found[0]
    return pieces.index("<unk>") if "<unk>" in pieces else None


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}")
    return value if isinstance(value, bool) else default
