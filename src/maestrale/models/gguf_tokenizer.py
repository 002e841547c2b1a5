"""A GGUF file's tokenizer, as a Hugging Face `tokenizer.json` and a vocabulary.

GGUF keeps pieces, types and merges, but only the *name* of how text is cut before merging
(`tokenizer.ggml.pre`); the cut itself is a table here. A wrong cut gives wrong tokens without
any error, so a name that isn't in the table is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.byte_level import decode_byte_level
from maestrale.models.vocabulary import Vocabulary

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6

# Control tokens that end a turn or a text, under whatever name a model family gives them.
_END_NAMES = frozenset({
    "</s>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>",
    "<|end|>", "<|end_of_turn|>", "<end_of_turn>",
})  # fmt: skip

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return [split, _byte_level(False)]


_DIGITS = [{"type": "Digits", "individual_digits": True}, _byte_level(True)]

# how text is cut into the pieces that are merged, and the tokenizer.ggml.pre that name it
_FAMILIES = (
    (_DIGITS, ("smollm", "starcoder", "refact", "command-r", "codeshell")),
    ([_byte_level(True)], ("gpt-2", "phi-2", "mpt", "olmo", "jais")),
    (_split(_LLAMA3), ("llama-bpe", "llama3", "llama-v3")),
    (_split(_QWEN2), ("qwen2", "deepseek-r1-qwen")),
    (_split(_TEKKEN), ("tekken",)),
)
_CUTS = {name: cut for cut, names in _FAMILIES for name in names}
_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})
_COMPOSED = frozenset({"qwen2", "deepseek-r1-qwen"})


def byte_level_tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The `tokenizer.json` document of a GGUF file whose tokenizer is byte-level BPE.

    Raises: ModelError when how it cuts text isn't known, or its merges are missing.
    """
    cut = metadata.get("tokenizer.ggml.pre", "default")
    if cut not in _CUTS:
        raise ModelError(
            f"The GGUF file's tokenizer cuts text the way called {cut!r}, which isn't known here; "
            f"known are {', '.join(sorted(_CUTS))}. Convert the model from its Hugging Face "
            "folder with optimum-intel and give that folder instead."
        )
    pieces, types = pieces_of(metadata)
    merges: Any = metadata.get("tokenizer.ggml.merges")
    if not _is_list_of(merges, str) or not all(" " in merge for merge in merges):
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
        if kind in (CONTROL, USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if cut in _COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _CUTS[cut]},
        "post_processor": None,
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut in _WHOLE_WORDS_FIRST,
            "vocab": {piece: token for token, piece in enumerate(pieces)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def byte_level_vocabulary(metadata: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """What each token of a byte-level BPE spells, for `vocab_size` rows of logits."""
    pieces, types = pieces_of(metadata)
    spelled = [b""] * max(vocab_size, len(pieces))
    for token, (piece, kind) in enumerate(zip(pieces, types, strict=True)):
        if kind == NORMAL:
            spelled[token] = decode_byte_level(piece)
        elif kind == USER_DEFINED:
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
    return pieces, types


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def control_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    pieces, types = pieces_of(metadata)
    return {
        piece: token
        for token, (piece, kind) in enumerate(zip(pieces, types, strict=True))
        if kind == CONTROL
    }


def end_token_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end an answer: those the file names, then control tokens known to end turns."""
    named = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    known = [token for name, token in control_ids(metadata).items() if name in _END_NAMES]
    ids = dict.fromkeys([*(token for token in named if isinstance(token, int)), *known])
    if not ids:
        raise ModelError("The GGUF file names no end-of-text token, so answers would never end.")
    return tuple(ids)
