"""Each pre-tokenizer that llama.cpp's converter names cuts text as it should (golden/make_cuts)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from maestrale.models.pre_tokenizers import PRE_TOKENIZERS
from maestrale.models.vocabulary import byte_of_character
from serving import ROOT

GOLDEN: list[Any] = json.loads((ROOT / "tests/golden/cuts.json").read_text())
CUTS = {name: entry["cuts"] for entry in GOLDEN for name in entry["names"]}
OTHERS = {
    "falcon": (
        "ab 1234 (x)!",
        ["ab", " ", "123", "4", " ", "(", "x", ")!"],
    ),  # its steps go over bytes
    "kimi-k2": ("天HTTPServer's 1234天", ["天", "HTTPServer's", " ", "123", "4", "天"]),
    "afmoe": ("1234567 天x", ["1", "234", "567", " ", "天", "x"]),
    "gemma4": ("a  b\n\nc", ["a  b", "\n\n", "c"]),
}
TABLE = byte_of_character()


def pieces(name: str, text: str) -> list[str]:
    cut = PRE_TOKENIZERS[name]
    document: dict[str, Any] = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
        "decoder": None, "model": {"type": "BPE", "vocab": {}, "merges": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(cut.steps)},
    }  # fmt: skip
    tokenizer = Tokenizer.from_str(json.dumps(document))
    found = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    if cut.escaped:
        return found
    return [bytes(TABLE[letter] for letter in piece).decode(errors="replace") for piece in found]


@pytest.mark.parametrize("name", CUTS)
def test_text_is_cut_as_the_model_s_own_tokenizer_does(name: str) -> None:
    for expected in CUTS[name]:
        assert pieces(name, "".join(expected)) == expected


@pytest.mark.parametrize("name", OTHERS)
def test_cuts_that_no_list_of_patterns_tells(name: str) -> None:
    text, expected = OTHERS[name]
    assert pieces(name, text) == expected


def test_every_name_is_held_to_something() -> None:
    assert set(PRE_TOKENIZERS) == set(CUTS) | set(OTHERS)
