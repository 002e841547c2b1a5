"""A tokenizer built from GGUF metadata cuts and merges text as the model's own does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from maestrale.config.settings import BUNDLED_MODEL
from maestrale.errors import ModelError
from maestrale.models.catalog import find_model, packaged_weights
from maestrale.models.gguf_file import read_gguf
from maestrale.models.gguf_tokenizer import (
    byte_level_tokenizer,
    byte_level_vocabulary,
    end_token_ids,
)
from maestrale.models.vocabulary import byte_of_character, decode_byte_level

TEXTS = [
    "Hello, world!",
    "Tell me about Rome, founded in 753 BC; 1,234.56 is 0x4D2.",
    "don't you'll we're it's I'd they've I'm 'quoted' DON'T",
    "  two spaces, three   here, and a tab\tand\n\nnewlines\r\n  indented  ",
    "def f(x): return {'a': [1, 2, 3], \"b\": x ** 2}  # ok?",
    "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d \u20ac5 \u00bd \u0967\u0968\u0969",
    "\u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \u043f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f680\U0001f468\u200d\U0001f469\u200d\U0001f467 ok",
    "!!! ... ??? --- === <<>> [[]] {{}} <tag attr='x'/>",
    "https://example.org/path?q=a%20b&c=d#e",
    "a" * 200,
    " " * 50 + "x",
]


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    known = find_model(BUNDLED_MODEL)
    assert known is not None
    weights = packaged_weights(known)
    assert weights is not None
    return read_gguf(weights).metadata


@pytest.fixture(scope="module")
def built(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(byte_level_tokenizer(metadata)))


@pytest.mark.parametrize("text", TEXTS)
def test_the_vocabulary_spells_the_text_again(
    built: Tokenizer, metadata: dict[str, Any], text: str
) -> None:
    vocabulary = byte_level_vocabulary(metadata, 49152)
    ids = built.encode(text, add_special_tokens=False).ids
    assert b"".join(vocabulary.token_bytes[token] for token in ids).decode() == text


def test_the_vocabulary_has_a_row_for_each_logit(metadata: dict[str, Any]) -> None:
    vocabulary = byte_level_vocabulary(metadata, 50000)
    assert len(vocabulary) == 50000
    assert vocabulary.token_bytes[49999] == b""
    assert vocabulary.eos_token_ids[0] == vocabulary.control_ids["<|im_end|>"]
    assert all(vocabulary.token_bytes[token] == b"" for token in vocabulary.control_ids.values())


def test_each_byte_has_a_character_of_its_own() -> None:
    table = byte_of_character()
    assert sorted(table.values()) == list(range(256))
    assert decode_byte_level("\u0120caf\u00c3\u00a9") == " caf\u00e9".encode()


def small(**changes: Any) -> dict[str, Any]:
    pieces = [*byte_of_character(), "<|end|>", "12", "123", "1234"]
    kinds = [1] * 256 + [3, 1, 1, 1]
    merges = ["1 2", "12 3", "123 4"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": 256,
    }
    return metadata | changes


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("gpt-2", ["1234"]),
        ("smollm", ["1", "2", "3", "4"]),
        ("qwen2", ["1", "2", "3", "4"]),
        ("llama-bpe", ["123", "4"]),
        ("tekken", ["1", "2", "3", "4"]),
    ],
)
def test_numbers_are_cut_the_family_s_way(cut: str, pieces: list[str]) -> None:
    document = byte_level_tokenizer(small(**{"tokenizer.ggml.pre": cut}))
    assert Tokenizer.from_str(json.dumps(document)).encode("1234").tokens == pieces


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer.ggml.pre": "martian"}, "'martian'"),
        ({"tokenizer.ggml.merges": None}, "without merges"),
        ({"tokenizer.ggml.tokens": None}, "no tokenizer"),
        ({"tokenizer.ggml.token_type": [1]}, "don't match"),
    ],
)
def test_what_cannot_be_built_faithfully_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        byte_level_tokenizer(small(**changes))


def test_ends_are_the_file_s_own_then_those_known_by_name() -> None:
    assert end_token_ids(small()) == (256,)
    assert end_token_ids(small(**{"tokenizer.ggml.eot_token_id": 7})) == (256, 7)
    with pytest.raises(ModelError, match="never end"):
        end_token_ids(
            small(**{"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.token_type": [1] * 260})
        )
