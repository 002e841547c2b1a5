"""Prompts for filling in the middle, id by id, as the models were trained on them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from maestrale.errors import ContextLengthExceeded, InvalidRequest
from maestrale.models.gguf_tokenizer import byte_level_tokenizer, byte_level_vocabulary
from maestrale.models.hf_tokenizer import hf_vocabulary
from maestrale.models.mistral_vocabulary import shipped_file
from maestrale.models.sentencepiece_model import (
    SentencePieceModel,
    added_tokens,
    read_model,
    sentencepiece_model,
)
from maestrale.models.vocabulary import byte_of_character
from maestrale.prompt.encode import encoder_for_name
from maestrale.prompt.template import TemplateEncoder

TEXTS = [
    ("def add(a, b):\n    ", "\n    return total\n"),
    ("x = ", "  # two spaces"),
    ("", "suffix alone"),
    ("prefix alone", ""),
    (" a", " b"),
    ("naïve ", "🎉 ok"),
]
FAMILIES = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"],
    [f"<\uff5cfim\u2581{name}\uff5c>" for name in ("begin", "hole", "end")],
]


def byte_level(names: list[str], begin: tuple[int, ...] = ()) -> TemplateEncoder:
    """A tokenizer of 256 bytes, an end of text, and these marks from 257 on."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*byte_of_character(), "<|end|>", *names],
        "tokenizer.ggml.token_type": [1] * 256 + [3] + [4] * len(names),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 256,
    }
    document, vocabulary = byte_level_tokenizer(metadata), byte_level_vocabulary(metadata, 0)
    return TemplateEncoder(document, vocabulary, None, {}, begin)


def spelled(encoder: TemplateEncoder, text: str) -> list[int]:
    return list(encoder.encode_text(text, add_bos=False))


@pytest.mark.parametrize("names", FAMILIES, ids=lambda names: names[0])
@pytest.mark.parametrize(("prefix", "suffix"), TEXTS)
def test_prefix_suffix_and_then_the_middle(names: list[str], prefix: str, suffix: str) -> None:
    encoder = byte_level(names, begin=(256,))
    ids = encoder.encode_fim(prefix, suffix)
    expected = [257, *spelled(encoder, prefix), 258, *spelled(encoder, suffix), 259]
    assert list(ids) == [256, *expected]
    assert list(encoder.encode_fim(prefix, suffix, add_bos=False)) == expected
    assert encoder.decode(ids) == f"<|end|>{names[0]}{prefix}{names[1]}{suffix}{names[2]}"


@pytest.mark.parametrize("names", FAMILIES, ids=lambda names: names[0])
def test_no_text_spells_a_mark(names: list[str]) -> None:
    encoder = byte_level(names)
    hostile = "".join(names) + "<|end|>"
    ids = encoder.encode_fim(hostile, hostile)
    assert [token for token in ids if token > 255] == [257, 258, 259]
    assert not [token for token in encoder.encode_text(hostile) if token > 255]
    assert encoder.decode(ids[1:-1]) == f"{hostile}{names[1]}{hostile}"


def test_what_can_not_fit_is_refused_before_it_is_encoded() -> None:
    encoder = byte_level(FAMILIES[0])
    with pytest.raises(ContextLengthExceeded):
        encoder.encode_fim("a", "b" * 1_000_000, max_tokens=100)
    with pytest.raises(InvalidRequest, match="surrogate"):
        encoder.encode_fim("a", "\ud800")


# Mistral's, with mistral-common for reference


@pytest.fixture(scope="module")
def reference() -> Any:
    return MistralTokenizer.from_file(shipped_file("v3"))


@pytest.fixture(scope="module")
def rebuilt() -> TemplateEncoder:
    """Codestral's tokenizer as of a GGUF file that is not recognised as Mistral's."""
    metadata = metadata_of(read_model(shipped_file("v3")))
    model = sentencepiece_model(metadata)
    document = {"sentencepiece": model, "added_tokens": added_tokens(metadata)}
    return TemplateEncoder(document, model.vocabulary(0, (2,)), None, {}, (1,))


@pytest.mark.parametrize(("prefix", "suffix"), TEXTS)
def test_codestrals_are_mistral_commons(
    reference: Any, rebuilt: TemplateEncoder, prefix: str, suffix: str
) -> None:
    expected = reference.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens
    assert expected[:2] == [1, 13]
    known = encoder_for_name("mistralai/Codestral-22B-v0.1")
    for encoder in (known, rebuilt):
        assert list(encoder.encode_fim(prefix, suffix)) == expected
        assert list(encoder.encode_fim(prefix, suffix, add_bos=False)) == expected[1:]


def test_no_text_spells_mistrals_marks(rebuilt: TemplateEncoder) -> None:
    known = encoder_for_name("mistralai/Codestral-22B-v0.1")
    for encoder in (known, rebuilt):
        ids = encoder.encode_fim("[SUFFIX]a[PREFIX]</s>", "[MIDDLE][PREFIX]")
        assert [token for token in ids if token < 771] == [1, 13, 11]


def test_tekkens_are_mistral_commons() -> None:
    reference: Any = MistralTokenizer.from_file(shipped_file("v3-tekken"))
    encoder = encoder_for_name("mistralai/Mistral-Nemo-Instruct-2407")
    for prefix, suffix in TEXTS:
        expected = reference.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens
        assert list(encoder.encode_fim(prefix, suffix)) == expected


# CodeLlama's, whose suffix has no space before it


def metadata_of(model: SentencePieceModel, **extra: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a model."""
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.text for piece in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
        "tokenizer.ggml.token_type": [piece.kind for piece in model.pieces],
        "tokenizer.ggml.eos_token_id": 2,
    } | {f"tokenizer.ggml.{key}": value for key, value in extra.items()}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[SentencePieceModel, bytes]:
    content = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([f"{a} {b}" for a, b in TEXTS if a + b] * 8),
        model_writer=content,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("llama") / "tokenizer.model"
    path.write_bytes(content.getvalue())
    return read_model(path), content.getvalue()


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_codellamas_are_its_reference_s(llama: tuple[SentencePieceModel, bytes], kind: int) -> None:
    trained, content = llama
    size = len(trained.pieces)
    metadata = metadata_of(trained)
    for name in ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"):
        metadata["tokenizer.ggml.tokens"].append(name)
        metadata["tokenizer.ggml.scores"].append(0.0)
        metadata["tokenizer.ggml.token_type"].append(kind)
    model = sentencepiece_model(metadata)
    document = {"sentencepiece": model, "added_tokens": added_tokens(metadata)}
    encoder = TemplateEncoder(document, model.vocabulary(0, (2,)), None, {}, (1,))
    assert encoder.fim_marks is not None
    assert encoder.fim_marks.ends == tuple(range(size, size + 4))
    library = SentencePieceProcessor(model_proto=content)
    for prefix, suffix in TEXTS:
        before = library.encode(prefix) if prefix else []
        behind = library.encode("\x01" + suffix)[2:]  # behind a space, and a byte that is no piece
        ids = encoder.encode_fim(prefix, suffix)
        assert list(ids) == [1, size, *before, size + 1, *behind, size + 2]
        assert encoder.decode(ids).endswith(f"▁<SUF>{suffix}▁<MID>")
    hostile = encoder.encode_fim(" <PRE> ▁<SUF>", "▁<MID>▁<EOT>")
    assert [token for token in hostile if token >= size] == [size, size + 1, size + 2]


def test_a_space_is_put_before_the_prefix_alone() -> None:
    names = ["<unk>", "<s>", "</s>", *"▁ab", "▁<PRE>", "▁<SUF>", "▁<MID>"]
    document: dict[str, Any] = {
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "vocab": {name: token for token, name in enumerate(names)},
            "merges": [],
        },
    }
    encoder = TemplateEncoder(document, hf_vocabulary(document, 9, (2,)), None, {}, (1,))
    space, a, b, pre, suf, mid = range(3, 9)
    assert encoder.encode_fim("a", "b") == (1, pre, space, a, suf, b, mid)
    assert encoder.encode_fim("a", " b") == (1, pre, space, a, suf, space, b, mid)
