"""Tokenizers of Hugging Face folders: whose they are, and what their tokens spell."""

from __future__ import annotations

from typing import Any

import pytest

from maestrale.errors import ModelError
from maestrale.models.hf_tokenizer import hf_vocabulary, mistral_version_of
from maestrale.models.mistral_vocabulary import mistral_vocabulary, shipped_file

MISTRAL_TEMPLATE = "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]"


def converted(version: str) -> dict[str, Any]:
    """The `tokenizer.json` that transformers makes of a SentencePiece file: pieces by id."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(shipped_file(version)))
    pieces = [model.id_to_piece(token) for token in range(model.vocab_size())]
    special = [token for token in range(len(pieces)) if model.IsControl(token)] + [model.unk_id()]
    return {
        "added_tokens": [
            {"id": token, "content": pieces[token], "special": True} for token in sorted(special)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "\u2581"}],
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": {piece: token for token, piece in enumerate(pieces)},
            "merges": [],
        },
    }


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_mistrals_are_recognised_piece_by_piece(version: str) -> None:
    document = converted(version)
    assert mistral_version_of(document, MISTRAL_TEMPLATE) == version
    assert mistral_version_of(document, "{{ '<|im_start|>' }}") is None  # a model tuned from it
    document["model"]["vocab"]["odd"] = document["model"]["vocab"].pop("\u2581the")
    assert mistral_version_of(document, MISTRAL_TEMPLATE) is None


def test_sentencepiece_spells_as_mistrals_own_file_does() -> None:
    ours = hf_vocabulary(converted("v1"), 32000, (2,))
    theirs = mistral_vocabulary("v1", 32000)
    assert ours.token_bytes == theirs.token_bytes
    assert ours.control_ids == theirs.control_ids
    assert ours.leading_space


def test_a_first_word_that_is_a_special_case_is_refused() -> None:
    document = converted("v1") | {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"},
    }
    with pytest.raises(ModelError, match="prepend_scheme"):
        hf_vocabulary(document, 32000, (2,))
    document["pre_tokenizer"] = {"type": "Metaspace", "prepend_scheme": "never"}
    assert not hf_vocabulary(document, 32000, (2,)).leading_space


@pytest.mark.parametrize("document", [{}, {"model": 3}, {"model": {"type": "Unigram"}}])
def test_other_kinds_are_refused(document: dict[str, Any]) -> None:
    assert mistral_version_of(document, None) is None
    with pytest.raises(ModelError, match="neither"):
        hf_vocabulary(document, 10, (2,))
