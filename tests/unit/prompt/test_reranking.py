"""A reranker's prompt: as the model card has it, and no text in it gives a control token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maestrale.errors import ContextLengthExceeded, InvalidRequest, ModelError
from maestrale.models.resolve import prepare
from maestrale.prompt.encode import PromptEncoder, encoder_for
from maestrale.prompt.reranking import QWEN3_RERANKER, check_template, filled
from tiny_mistral import write_tiny_mistral
from tiny_reranker import MARKS, TEMPLATE, write_classifier, write_gguf, write_original

START, END, THINK, UNTHINK = range(256, 260)
WRITE: dict[str, Callable[[Path], Path]] = {
    "gguf": lambda path: write_gguf(path.with_suffix(".gguf")),
    "folder": write_classifier,
    "original": write_original,
}


def encoder(path: Path, kind: str, **fields: Any) -> PromptEncoder:
    source = WRITE[kind](path / "model", **fields)
    return encoder_for(prepare(str(source), path / "cache", lambda phase, fraction: None))


def test_a_place_in_a_text_stays_text() -> None:
    texts = {"query": "{document}", "document": "{query} {document}"}
    assert filled("<{query}|{document}>", texts) == "<{document}|{query} {document}>"


@pytest.mark.parametrize("text", ["", "{query}", "{document}", "{query}{query}{document}"])
def test_a_template_without_both_places_is_refused(text: str) -> None:
    assert check_template(TEMPLATE) == TEMPLATE
    with pytest.raises(ModelError, match="once each"):
        check_template(text)
    with pytest.raises(ModelError, match="once each"):
        check_template("{{ query }} {{ document }} of Jinja, {% if x %}")


@pytest.mark.parametrize("kind", ["folder", "original"])
def test_without_a_template_it_is_qwen3_rerankers(tmp_path: Path, kind: str) -> None:
    ids = encoder(tmp_path, kind).encode_pair("Wer?", "Ich war's nicht é.")
    decoded = encoder_for_ids(ids)
    texts = {"query": "Wer?", "document": "Ich war's nicht é."}
    assert decoded == filled(QWEN3_RERANKER, texts)
    assert [token for token in ids if token in (START, END, THINK, UNTHINK)] == [
        *(START, END, START, END, START, THINK, UNTHINK)
    ]


def encoder_for_ids(ids: tuple[int, ...]) -> str:
    """What the tiny vocabulary's ids spell."""
    words = {260: b"yes", 261: b"no", 262: b"ye"}
    marks = {256 + index: mark.encode() for index, mark in enumerate(MARKS)}
    return b"".join(marks.get(id_) or words.get(id_) or bytes([id_]) for id_ in ids).decode()


def test_a_gguf_files_own_template_is_taken(tmp_path: Path) -> None:
    made = encoder(tmp_path, "gguf")
    assert made.encode_pair("a", "b") == (START, *b"a\nb", END)
    assert made.encode_pair("a", "") == (START, *b"a\n", END)


def test_marks_and_places_in_texts_stay_text(tmp_path: Path) -> None:
    made = encoder(tmp_path, "gguf")
    for text in (*MARKS, "".join(MARKS), "<|im_", "end|>", "{document}", "<|im_start", " "):
        ids = made.encode_pair(text, text)
        assert (ids[0], ids[-1]) == (START, END)
        assert encoder_for_ids(ids[1:-1]) == f"{text}\n{text}"
        assert not {START, END, THINK, UNTHINK} & set(ids[1:-1])


def test_a_document_is_cut_where_it_is_asked_for(tmp_path: Path) -> None:
    made = encoder(tmp_path, "gguf")
    for most in (1, 5, 10, 11, 100):
        ids = made.encode_pair("q", "0123456789", max_document_tokens=most)
        assert ids == (START, *b"q\n", *b"0123456789"[:most], END)
    # No half of a character, and nothing that is too long once it is cut.
    assert made.encode_pair("q", "aé", max_document_tokens=2) == (START, *b"q\na", END)
    long = made.encode_pair("q", "x" * 1_000_000, max_document_tokens=3, max_tokens=20)
    assert long == (START, *b"q\nxxx", END)


def test_what_never_fits_is_refused_in_time(tmp_path: Path) -> None:
    made = encoder(tmp_path, "gguf")
    for query, document in (("q", "x" * 5_000_000), ("x" * 5_000_000, "d")):
        with pytest.raises(ContextLengthExceeded):
            made.encode_pair(query, document, max_tokens=100)
    ids = made.encode_pair("q", "x" * 5_000_000, max_document_tokens=1 << 30, max_tokens=100)
    assert 100 < len(ids) < 200  # too long, as its caller counts
    for query, document in (("\ud800", "d"), ("q", "\ud800")):
        with pytest.raises(InvalidRequest, match="surrogate"):
            made.encode_pair(query, document, max_document_tokens=5)


def test_a_template_of_jinja_in_a_reranker_is_refused_at_the_start(tmp_path: Path) -> None:
    jinja: dict[str, Any] = {"tokenizer.chat_template.rerank": "{{ query }}"}
    with pytest.raises(ModelError, match=r"tokenizer\.chat_template\.rerank"):
        encoder_for(
            prepare(
                str(write_gguf(tmp_path / "model.gguf", **jinja)),
                tmp_path / "cache",
                lambda phase, fraction: None,
            )
        )


def test_mistrals_tokenizer_has_no_such_prompt(tmp_path: Path) -> None:
    source = write_tiny_mistral(tmp_path / "mistral.gguf")
    made = encoder_for(prepare(str(source), tmp_path / "cache", lambda phase, fraction: None))
    with pytest.raises(InvalidRequest, match="Qwen3-Reranker"):
        made.encode_pair("q", "d")
