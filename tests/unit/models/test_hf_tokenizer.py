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


def test_who_writes_a_space_before_the_first_word() -> None:
    document = converted("v1") | {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"},
    }
    assert hf_vocabulary(document, 32000, (2,)).leading_space
    document["pre_tokenizer"] = {"type": "Metaspace", "prepend_scheme": "never"}
    assert not hf_vocabulary(document, 32000, (2,)).leading_space


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "none that is known"),
        ({"model": 3}, "none that is known"),
        ({"model": {"type": "Unigram"}}, "kind Unigram"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "kind WordPiece"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}}}, "kind WordLevel"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "end_of_word_suffix": "</w>"}}, "'</w>'"),
    ],
)
def test_other_kinds_are_refused(document: dict[str, Any], said: str) -> None:
    assert mistral_version_of(document, None) is None
    with pytest.raises(ModelError, match=said):
        hf_vocabulary(document, 10, (2,))


def test_added_tokens_beyond_the_logits_are_left_out() -> None:
    added = [{"id": 5, "content": "<image>", "special": True}]
    document = {
        "model": {"type": "Unigram", "vocab": [["a", 0.0], ["▁b", -1.0], ["<0x41>", -2.0]]},
        "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"},
        "added_tokens": added,
    }
    vocabulary = hf_vocabulary(document, 5, (2,))
    assert vocabulary.token_bytes == (b"a", b" b", b"A", b"", b"")
    assert vocabulary.control_ids == {}
    assert hf_vocabulary(document, 6, (2,)).control_ids == {"<image>": 5}
    with pytest.raises(ModelError, match="the model only 2"):
        hf_vocabulary(document, 2, (1,))
