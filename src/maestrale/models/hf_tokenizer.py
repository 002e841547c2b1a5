"""What a Hugging Face `tokenizer.json` says of each token: its bytes, and whose tokenizer it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.fim_tokens import marks_among
from maestrale.models.gguf_tokenizer import spelling
from maestrale.models.mistral_vocabulary import recognise
from maestrale.models.vocabulary import Vocabulary, decode_byte_level


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

    Raises: ModelError for tokenizers that aren't BPE or Unigram over the text's own characters.
    """
    _check_kind(tokenizer)
    added = tokenizer.get("added_tokens") or ()
    # Some models have a few added tokens more than rows of logits; they can't be used.
    beyond = {token["content"] for token in added if token["id"] >= size}
    spell = decode_byte_level if _is_byte_level(tokenizer) else spelling
    spelled = [b""] * size
    control: dict[str, int] = {}
    for piece, token in _pieces(tokenizer).items():
        if piece not in beyond:
            if token >= size:
                raise ModelError(f"The tokenizer has {token + 1} tokens, the model only {size}.")
            spelled[token] = spell(piece)
    marks = marks_among({name: id_ for name, id_ in ids_of(tokenizer).items() if id_ < size})
    for token in added:
        if token["id"] < size:
            special = token["special"] or token["id"] in marks  # Qwen's aren't flagged
            spelled[token["id"]] = b"" if special else token["content"].encode()
            if special:
                control[token["content"]] = token["id"]
    for piece, token in _pieces(tokenizer).items():
        if token in marks:
            spelled[token] = b""
            control.setdefault(piece, token)
    return Vocabulary(
        token_bytes=tuple(spelled),
        control_ids=control,
        eos_token_ids=ends,
        leading_space=not _is_byte_level(tokenizer) and _prepends_space(tokenizer),
    )


def ids_of(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """The id of each token of a tokenizer.json by its text, added ones too."""
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
    return _pieces(tokenizer) | added


def spelled_by_merges(tokenizer: Mapping[str, Any]) -> set[str]:
    """The pieces of a BPE that its merges make, and single characters: what text is cut into."""
    model = tokenizer.get("model")
    merges = model.get("merges") if isinstance(model, Mapping) else None
    made = {
        "".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges or ()
    }
    return made | {piece for piece in _pieces(tokenizer) if len(piece) == 1}


def _pieces(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocab, list):  # Unigram's: pairs of text and score
        return {entry[0]: token for token, entry in enumerate(vocab)}
    return dict(vocab) if isinstance(vocab, Mapping) else {}


def _check_kind(tokenizer: Mapping[str, Any]) -> None:
    """Raises: ModelError."""
    model = tokenizer.get("model")
    model = model if isinstance(model, Mapping) else {}
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    ends_words = model.get("end_of_word_suffix") or model.get("continuing_subword_prefix")
    if kind not in ("BPE", "Unigram") or not model.get("vocab") or ends_words:
        what = f"of the kind {kind}" if kind else "none that is known"
        what += f" with {ends_words!r} at pieces' ends" if ends_words else ""
        raise ModelError(
            f"The folder's tokenizer.json is {what}, which isn't served. Served are byte-level BPE "
            "and SentencePiece's BPE and Unigram: those of language models that write text."
        )


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps(tokenizer.get("decoder"))


def _prepends_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space is written before a text's first word, as SentencePiece does."""
    cutting = json.dumps(tokenizer.get("pre_tokenizer"))
    metaspace = '"Metaspace"' in cutting and '"never"' not in cutting
    without = '"add_prefix_space": false' in cutting and '"prepend_scheme"' not in cutting
    return '"Prepend"' in json.dumps(tokenizer.get("normalizer")) or (metaspace and not without)
