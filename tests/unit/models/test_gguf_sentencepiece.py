"""SentencePiece vocabularies rebuilt from a GGUF file give the ids of the library's own model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from maestrale.errors import ModelError
from maestrale.models.mistral_vocabulary import shipped_file
from maestrale.models.sentencepiece_model import (
    SentencePieceModel,
    _fields,
    added_tokens,
    read_model,
    sentencepiece_model,
)
from maestrale.prompt.messages import ChatMessage
from maestrale.prompt.template import TemplateEncoder

CORPUS = [
    "The quick brown fox jumps over the lazy dog, 12345 times; again and again.",
    "Der schnelle braune Fuchs springt über den faulen Hund. Ça va très bien, merci!",
    "Быстрая коричневая лиса прыгает через ленивую собаку. Привет, мир!",
    "敏捷的棕色狐狸跳过了懒狗。你好世界。素早い茶色の狐がのろまな犬を飛び越える。",
    "الثعلب البني السريع يقفز فوق الكلب الكسول. مرحبا بالعالم",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। नमस्ते दुनिया",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다. 안녕 세상아",
    "def f(x):\n    return {'a': [1, 2, 3]}  # aaaa ---- ====",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "  two  spaces   three\n\n\nlines\t\ttabs  ",
    "aaaaaaaaa ab aab aaaab ------- ========= 0000000",
    "🦙🚀 👨‍👩‍👧 ﷽ Z̷a̷l̷g̷o̷ ½ ² Ⅷ \u200b\u00a0x",
    "ไทย Ελληνικά עברית ქართული தமிழ் 𐍈 \U0001d518",
    "foo and foofoo bar baz<tool>x</tool> <s> </s> <unk> <0x41> ▁ x▁y",
    "\x00\x01\x7f\ufeff",
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request: pytest.FixtureRequest) -> Any:
    """`trained(...)`: a model of the kind, with further options of the trainer."""

    def train(**options: Any) -> bytes:
        model = io.BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS * 4),
            model_writer=model,
            model_type=request.param,
            vocab_size=600,
            character_coverage=1.0,
            normalization_rule_name=options.pop("normalization_rule_name", "identity"),
            remove_extra_whitespaces=options.pop("remove_extra_whitespaces", False),
            minloglevel=2,
            hard_vocab_limit=False,
            **options,
        )
        return model.getvalue()

    return train


def metadata_of(model: SentencePieceModel, **extra: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a model."""
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.text for piece in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
        "tokenizer.ggml.token_type": [piece.kind for piece in model.pieces],
        "tokenizer.ggml.eos_token_id": model.ids()["</s>"],
    } | {f"tokenizer.ggml.{key}": value for key, value in extra.items()}


def read(content: bytes, tmp_path: Path) -> SentencePieceModel:
    (tmp_path / "tokenizer.model").write_bytes(content)
    return read_model(tmp_path / "tokenizer.model")


def ids_of(content: bytes, text: str) -> list[int]:
    ids: list[int] = SentencePieceProcessor(model_proto=content).encode(text)
    return ids


@pytest.mark.parametrize(
    "options",
    [
        {"byte_fallback": True},
        {"byte_fallback": True, "add_dummy_prefix": False},
        {"byte_fallback": False},
        {"byte_fallback": True, "user_defined_symbols": ["foo", "<tool>", "</tool>", "▁▁▁", "\n"]},
        {"byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True},
    ],
)
def test_ids_are_those_of_the_library(trained: Any, tmp_path: Path, options: Any) -> None:
    content = trained(**options)
    original = read(content, tmp_path)
    prefix = options.get("add_dummy_prefix", True)
    rebuilt = sentencepiece_model(metadata_of(original, add_space_prefix=prefix)).serialized()
    for text in TEXTS:
        assert ids_of(rebuilt, text) == ids_of(content, text), text
        assert ids_of(original.serialized(), text) == ids_of(content, text), text


def test_a_stated_normalisation_is_obeyed(trained: Any, tmp_path: Path) -> None:
    content = trained(
        byte_fallback=True, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True
    )
    original = read(content, tmp_path)
    blob = dict(_fields(original.normalizer))[2]
    assert isinstance(blob, bytes)
    signed = [byte - 256 if byte > 127 else byte for byte in blob]
    metadata = metadata_of(original, precompiled_charsmap=signed, remove_extra_whitespaces=True)
    rebuilt = sentencepiece_model(metadata).serialized()
    for text in TEXTS:
        assert ids_of(rebuilt, text) == ids_of(content, text), text


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7"])
def test_mistral_s_own_models_come_back(version: str) -> None:
    content = shipped_file(version).read_bytes()
    rebuilt = sentencepiece_model(metadata_of(read_model(shipped_file(version)))).serialized()
    for text in TEXTS:
        assert ids_of(rebuilt, text) == ids_of(content, text), text


def test_the_vocabulary_spells_the_text_again(trained: Any, tmp_path: Path) -> None:
    content = trained(byte_fallback=True)
    model = sentencepiece_model(metadata_of(read(content, tmp_path)))
    vocabulary = model.vocabulary(700, (2,))
    assert len(vocabulary) == 700
    assert vocabulary.leading_space
    assert vocabulary.control_ids == {"<unk>": 0, "<s>": 1, "</s>": 2}
    for text in TEXTS[:-2]:
        spelled = b"".join(vocabulary.token_bytes[token] for token in ids_of(content, text))
        assert spelled.decode().removeprefix(" ") == text


def test_markers_come_from_templates_only(trained: Any, tmp_path: Path) -> None:
    symbols = ["<tool>", "foo"]
    content = trained(byte_fallback=True, user_defined_symbols=symbols)
    original = read(content, tmp_path)
    metadata = metadata_of(original)
    model = sentencepiece_model(metadata)
    tokenizer = {"sentencepiece": model, "added_tokens": added_tokens(metadata)}
    template = "{{ bos_token }}{% for m in messages %}<tool>{{ m.content }}</s>{% endfor %}"
    encoder = TemplateEncoder(
        tokenizer, model.vocabulary(0, (2,)), template, {"bos_token": "<s>"}, (1,)
    )
    ids = model.ids()
    question = [ChatMessage(role="user", content="a <tool> foo</s>")]
    prompt = encoder.encode_chat(question).token_ids
    inner = tuple(ids_of(model.without({"<tool>"}).serialized(), "a <tool> foo</s>"))
    assert prompt == (1, ids["<tool>"], *inner, 2)
    assert ids["foo"] in inner
    assert ids["<tool>"] not in inner
    assert encoder.encode_text("Hello") == (1, *ids_of(content, "Hello"))


def test_a_vocabulary_without_order_keeps_its_ids(tmp_path: Path) -> None:
    metadata = metadata_of(read_model(shipped_file("v1")))
    metadata["tokenizer.ggml.scores"] = None
    with pytest.raises(ModelError, match="without scores"):
        sentencepiece_model(metadata)


def test_odd_vocabularies_are_taken(tmp_path: Path) -> None:
    original = read_model(shipped_file("v1"))
    metadata = metadata_of(original)
    size = len(original.pieces)
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[size - 1], tokens[size - 2] = "", tokens[300]
    metadata["tokenizer.ggml.token_type"][0] = 3  # no unknown token
    tokens[0] = "<none>"
    rebuilt = sentencepiece_model(metadata).serialized()
    content = shipped_file("v1").read_bytes()
    assert ids_of(rebuilt, "Hello world") == ids_of(content, "Hello world")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 20, b"\x0a\xff\x01", b'{"a": 1}', b"PK\x03\x04"]
)
def test_what_is_no_model_is_said(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match="no SentencePiece model"):
        read(content, tmp_path)


def test_phi_3_s_tokens_take_the_blanks_behind_them() -> None:
    metadata = metadata_of(read_model(shipped_file("v1")))
    metadata |= {"general.architecture": "phi3"}
    taken = {token["content"]: token["rstrip"] for token in added_tokens(metadata)}
    assert taken == {"</s>": True, "<s>": False}
