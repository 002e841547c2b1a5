"""Which tokens are marks for filling in the middle: by name, by what a file states, and no more."""

from __future__ import annotations

from typing import Any

import pytest

from maestrale.models.fim_tokens import FimMarks, fim_marks, marks_in, stated_marks
from maestrale.models.gguf_tokenizer import byte_level_tokenizer, byte_level_vocabulary, pieces_of
from maestrale.models.hf_tokenizer import hf_vocabulary
from maestrale.models.mistral_vocabulary import mistral_vocabulary
from maestrale.models.vocabulary import byte_of_character

FAMILIES = {
    "Qwen": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|file_sep|>"],
    "StarCoder": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<filename>"],
    "SantaCoder": ["<fim-prefix>", "<fim-suffix>", "<fim-middle>", "<fim-pad>"],
    "DeepSeek": ["<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>",
                 "<\uff5cfim\u2581end\uff5c>"],
    "CodeLlama": ["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "\u2581<EOT>"],
    "GLM": ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
}  # fmt: skip
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def metadata(names: list[str], kind: int = CONTROL, **stated: int) -> dict[str, Any]:
    """A byte-level tokenizer with an end of text, and then these tokens from 257 on."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*byte_of_character(), "<|end|>", *names],
        "tokenizer.ggml.token_type": [NORMAL] * 256 + [CONTROL] + [kind] * len(names),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 256,
    } | {f"tokenizer.ggml.{key}_token_id": value for key, value in stated.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_marks_are_found_by_name(family: str) -> None:
    names = FAMILIES[family]
    ids = {name: 257 + place for place, name in enumerate(names)}
    found = fim_marks({"<|end|>": 256, **ids})
    assert found == FimMarks(prefix=257, suffix=258, middle=259, ends=tuple(ids.values()))
    for lacking in names[:3]:
        assert fim_marks({name: token for name, token in ids.items() if name != lacking}) is None


def test_mistrals_have_the_suffix_first() -> None:
    found = fim_marks(mistral_vocabulary("v3", 0).control_ids)
    assert found == FimMarks(prefix=11, suffix=13, middle=None, ends=(11, 13, 12))
    assert fim_marks(mistral_vocabulary("v1", 0).control_ids) is None


def test_a_file_states_its_own() -> None:
    names = ["<a>", "<b>", "<c>", "<pad>", "<sep>"]
    given = metadata(names, NORMAL, fim_pre=257, fim_suf=258, fim_mid=259, fim_pad=260, fim_sep=261)
    stated = stated_marks(given, 262)
    assert fim_marks({}, stated) == FimMarks(
        prefix=257, suffix=258, middle=259, ends=(257, 258, 259, 260, 261)
    )
    older = metadata(names, NORMAL, prefix=257, suffix=258, middle=259)
    assert stated_marks(older, 262) == {"prefix": 257, "suffix": 258, "middle": 259}


@pytest.mark.parametrize("bad", [-1, 262, True, "257", None, 2.0])
def test_ids_that_are_none_are_not_taken(bad: Any) -> None:
    given = metadata(["<a>"] * 5, fim_pre=bad, fim_suf=258, fim_mid=259)
    assert fim_marks({}, stated_marks(given, 262)) is None


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_control_tokens_however_a_gguf_file_flags_them(family: str, kind: int) -> None:
    names = FAMILIES[family]
    given = metadata(names, kind)
    assert set(pieces_of(given)[1][257:]) == {CONTROL}
    vocabulary = byte_level_vocabulary(given, 300)
    assert all(vocabulary.control_ids[name] == 257 + at for at, name in enumerate(names))
    assert not any(vocabulary.token_bytes[257:])
    added = byte_level_tokenizer(given)["added_tokens"]
    assert [token["special"] for token in added] == [True] * (len(names) + 1)


def test_so_they_are_in_a_folder() -> None:
    names = FAMILIES["Qwen"]
    given = byte_level_tokenizer(metadata(names, USER_DEFINED))
    for token in given["added_tokens"]:
        token["special"] = token["content"] == "<|end|>"  # as Qwen's folders have it
    vocabulary = hf_vocabulary(given, 270, (256,))
    assert fim_marks(vocabulary.control_ids) is not None
    assert not any(vocabulary.token_bytes[257:])


@pytest.mark.parametrize("names", [["[PREFIX]"], ["<PRE>", "<SUF>", "<MID>"], ["<filename>"]])
def test_words_that_are_no_whole_family_stay_text(names: list[str]) -> None:
    given = metadata(names, NORMAL)
    assert marks_in(given["tokenizer.ggml.tokens"], given) == frozenset()
    assert [text.decode() for text in byte_level_vocabulary(given, 0).token_bytes[257:]] == names
