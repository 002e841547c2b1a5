"""Models for the CPU engine: a small folder in the cache; the weights stay where they are."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor

from maestrale.errors import ModelError
from maestrale.models.mistral_vocabulary import mistral_vocabulary, shipped_file
from maestrale.models.prepared import load_prepared, weights_path
from maestrale.models.resolve import prepare
from maestrale.models.vocabulary import byte_of_character, load_vocabulary
from maestrale.prompt.encode import encoder_for, encoder_for_name
from maestrale.prompt.messages import ChatMessage
from tiny_mistral import write_tiny_mistral

CHATML = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
WEIGHTS = 1 << 21  # bytes, more than all that is written


def quiet(phase: str, fraction: float | None) -> None:
    """Progress that nobody looks at."""


def write_gguf(path: Path, architecture: str = "llama", words: int = 1, **extra: Any) -> Path:
    """A byte-level BPE of 256 bytes, `words` further tokens and three control tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in extra.items():
        key = key.replace("__", ".")
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    characters = [*byte_of_character()]
    merged = [f"{a}{b}" for a in characters for b in characters][:words]
    writer.add_context_length(512)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*characters, *merged, "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    writer.add_token_types([1] * (256 + words) + [3] * 3)
    writer.add_token_merges([f"{pair[0]} {pair[1]}" for pair in merged])
    writer.add_bos_token_id(256 + words)
    writer.add_eos_token_id(258 + words)
    writer.add_chat_template(CHATML)
    writer.add_tensor("token_embd.weight", np.zeros((WEIGHTS // 256, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def written(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if not file.is_symlink())


def test_a_gguf_stays_where_it_is(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", "gemma3")
    folder = prepare(str(source), tmp_path / "cache", quiet, engine="cpu")
    prepared = load_prepared(folder)
    assert (prepared.name, prepared.source) == ("tiny", str(source))
    assert (prepared.context_length, prepared.vocab_size) == (512, 260)
    assert prepared.weights_digest == ""
    assert {path.name for path in folder.iterdir()} == {
        "tokenizer.json", "vocabulary.msgpack", "maestrale.json",
    }  # fmt: skip
    assert written(tmp_path / "cache") < 100_000 < source.stat().st_size
    prompt = encoder_for(folder).encode_chat([ChatMessage(role="user", content="a")])
    assert prompt.token_ids == (258, load_vocabulary(folder).token_bytes.index(b"a"), 259)


def test_what_changes_the_file_is_prepared_anew(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    first = prepare(str(source), tmp_path / "cache", quiet, engine="cpu")
    assert prepare(str(source), tmp_path / "cache", quiet, engine="cpu") == first
    other = source.rename(tmp_path / "other.gguf")
    moved = prepare(str(other), tmp_path / "cache", quiet, engine="cpu")
    assert load_prepared(moved).source == str(other)
    status = other.stat()
    content = other.read_bytes().replace(b"<|im_start|>", b"<|im_begin|>"[:12])
    other.write_bytes(content)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time
    changed = prepare(str(other), tmp_path / "cache", quiet, engine="cpu")
    assert "<|im_begin|" in (changed / "tokenizer.json").read_text()
    assert len({first, moved, changed}) == 3


def test_a_large_vocabulary_takes_little_time(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "large.gguf", words=65_000)
    begun = time.monotonic()
    prepare(str(source), tmp_path / "cache", quiet, engine="cpu")
    first = time.monotonic() - begun
    begun = time.monotonic()
    prepare(str(source), tmp_path / "cache", quiet, engine="cpu")
    again = time.monotonic() - begun
    assert again < 0.25
    assert first < 5  # alone on two cores well under a second


def test_a_prepared_folder_is_for_its_engine(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    folder = prepare(str(source), tmp_path / "cache", quiet, engine="cpu")
    assert prepare(str(folder), tmp_path / "cache", quiet, engine="cpu") == folder
    with pytest.raises(ModelError, match="prepared for another engine than vllm"):
        prepare(str(folder), tmp_path / "cache", quiet, engine="vllm")


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    folder = prepare("tiny.gguf", tmp_path / "cache", quiet, engine="cpu")
    assert load_prepared(folder).source == str(source)


def test_a_mistral_gguf_has_mistral_s_own_tokenizer(tmp_path: Path) -> None:
    source = write_tiny_mistral(tmp_path / "tiny-mistral.gguf")
    prepared = load_prepared(prepare(str(source), tmp_path / "cache", quiet, engine="cpu"))
    assert (prepared.tokenizer_kind, prepared.mistral_version) == ("mistral", "v1")
    assert prepared.source == str(source)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"general__type": "adapter", "adapter__type": "lora"}, "adapter .LoRA.*llama-export-lora"),
        ({"general__type": "mmproj"}, "image or audio part"),
        ({"general__type": "imatrix"}, "importances"),
    ],
)
def test_ggufs_that_are_no_models(tmp_path: Path, extra: dict[str, Any], said: str) -> None:
    source = write_gguf(tmp_path / "odd.gguf", **extra)
    with pytest.raises(ModelError, match=said):
        prepare(str(source), tmp_path / "cache", quiet, engine="cpu")


@pytest.mark.parametrize(("kind", "said"), [("bert", "WordPiece"), ("t5", "T5"), ("rwkv", "RWKV")])
def test_tokenizers_that_are_not_served_are_named(tmp_path: Path, kind: str, said: str) -> None:
    source = write_gguf(tmp_path / "odd.gguf")
    key = b"tokenizer.ggml.model" + (8).to_bytes(4, "little")
    old, new = key + (4).to_bytes(8, "little") + b"gpt2", key + len(kind).to_bytes(8, "little")
    content = source.read_bytes()
    assert old in content
    # The tensors' places move with the metadata; the alignment's padding is behind it.
    source.write_bytes(content.replace(old, new + kind.encode()) + bytes(64))
    with pytest.raises(ModelError, match=f"{said}.*Served are"):
        prepare(str(source), tmp_path / "cache", quiet, engine="cpu")


def test_templates_ends_and_bos_are_the_file_s(tmp_path: Path) -> None:
    source = write_gguf(
        tmp_path / "tiny.gguf",
        tokenizer__ggml__add_bos_token=True,
        tokenizer__chat_template__tool_use="{{ bos_token }}{{ tools | tojson }}",
    )
    folder = prepare(str(source), tmp_path / "cache", quiet, engine="cpu")
    prepared = load_prepared(folder)
    assert (prepared.text_prefix, prepared.text_suffix) == ((257,), ())
    assert prepared.eos_token_ids == (259, 257)
    assert prepared.special_tokens["bos_token"] == "<|endoftext|>"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    question = [ChatMessage(role="user", content="hi")]
    encoder = encoder_for(folder)
    assert '"name": "f"' in encoder.encode_chat(question, tools=tools).text
    assert encoder.encode_chat(question).text == "<|im_start|>hi<|im_end|>"
    assert encoder_for(folder, "T{{ tools is none }}").encode_chat(question).text == "TTrue"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of safetensors with a byte-level tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    vocab = {piece: token for token, piece in enumerate(byte_of_character())}
    added = [
        {"id": 256 + at, "content": name, "special": True, "lstrip": False, "rstrip": False,
         "single_word": False, "normalized": False}
        for at, name in enumerate(("<s>", "</s>", "<|turn|>"))
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    documents = {
        "config.json": {
            "model_type": "llama", "vocab_size": 259, "max_position_embeddings": 64,
            "eos_token_id": 257, "bos_token_id": 256, "num_hidden_layers": 1, "hidden_size": 64,
            "num_attention_heads": 2, "intermediate_size": 64,
        },
        "tokenizer.json": {
            "version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        },
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "<|turn|>"},
    }  # fmt: skip
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    header = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    file = len(header).to_bytes(8, "little") + header + bytes(16)
    (folder / "model.safetensors").write_bytes(file)
    return folder


def test_safetensors_stay_where_they_are(folder: Path, tmp_path: Path) -> None:
    made = prepare(str(folder), tmp_path / "cache", quiet, engine="cpu")
    prepared = load_prepared(made)
    assert prepared.source == str(folder)
    assert prepared.eos_token_ids == (258, 257)  # the tokenizer's, then the configuration's
    assert not any(path.is_symlink() for path in made.iterdir())
    assert not (made / "model.safetensors").exists()
    shutil.rmtree(folder)
    assert encoder_for(made).encode_text("a") == (load_vocabulary(made).token_bytes.index(b"a"),)


@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_tokenizer_model_alone_is_asked_itself(
    folder: Path, tmp_path: Path, legacy: bool | None
) -> None:
    """transformers 5 makes merges of its own order of it; the library's ids are the model's."""
    (folder / "tokenizer.json").unlink()
    shutil.copy(shipped_file("v1"), folder / "tokenizer.model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 32002}))
    (folder / "added_tokens.json").write_text('{"<|turn|>": 32000, "[TOOL]": 32001}')
    template = "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}[TOOL]"
    settings = {"eos_token": "<|turn|>", "chat_template": template, "legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = prepare(str(folder), tmp_path / "cache", quiet, engine="cpu")
    prepared = load_prepared(made)
    assert prepared.tokenizer_kind == "sentencepiece"
    assert prepared.eos_token_ids == (32000, 257)
    library = SentencePieceProcessor(model_file=str(shipped_file("v1")))
    encoder = encoder_for(made)
    for text in ("Hi  there", " 你好 привет\n", "<s> [TOOL] <|turn|>"):
        assert encoder.encode_text(text) == (1, *library.encode(text))
    assert encoder.decode(encoder.encode_text("Hi  there")) == "<s>Hi  there"
    ids = encoder.encode_chat([ChatMessage(role="user", content="Hi")]).token_ids
    hi = library.encode("Hi") if legacy else [library.piece_to_id("Hi")]
    assert ids == (1, 32000, *hi, 32001)
    assert load_vocabulary(made).control_ids["<|turn|>"] == 32000


def test_a_tokenizer_model_may_write_no_space_before_the_first_word(
    folder: Path, tmp_path: Path
) -> None:
    """And the special tokens of the first Llama's folders are all called ""."""
    (folder / "tokenizer.json").unlink()
    shutil.copy(shipped_file("v1"), folder / "tokenizer.model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 32000}))
    settings = {"bos_token": "", "eos_token": "", "unk_token": "", "add_prefix_space": False}
    settings["chat_template"] = "{{ bos_token }}{{ messages[0].content }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = prepare(str(folder), tmp_path / "cache", quiet, engine="cpu")
    library = SentencePieceProcessor(model_file=str(shipped_file("v1")))
    encoder, ids = encoder_for(made), (1, library.piece_to_id("Hi"))
    assert encoder.encode_text("Hi") == ids
    assert encoder.encode_chat([ChatMessage(role="user", content="Hi")]).token_ids == ids
    assert encoder.decode(library.encode("Hi")) == " Hi"


def test_tekken_is_mistral_s_own(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    tekken = shipped_file("v3-tekken")
    shutil.copy(tekken, folder / "tekken.json")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 131072}))
    made = prepare(str(folder), tmp_path / "cache", quiet, engine="cpu")
    prepared = load_prepared(made)
    assert (prepared.tokenizer_kind, prepared.mistral_version) == ("mistral", "v3-tekken")
    vocabulary = load_vocabulary(made)
    assert vocabulary == mistral_vocabulary("v3-tekken", 131072)
    question = [ChatMessage(role="user", content="Hi")]
    ids = encoder_for(made).encode_chat(question).token_ids
    assert ids == encoder_for_name("mistral-nemo").encode_chat(question).token_ids


def test_a_folder_without_a_tokenizer_is_told_what_to_do(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"lacks tokenizer\.json.*save_pretrained"):
        prepare(str(folder), tmp_path / "cache", quiet, engine="cpu")
    (folder / "tekken.json").write_text("{}")
    with pytest.raises(ModelError, match="mistral-common knows"):
        prepare(str(folder), tmp_path / "cache", quiet, engine="cpu")


def test_small_files_are_told_by_their_content(folder: Path, tmp_path: Path) -> None:
    first = prepare(str(folder), tmp_path / "cache", quiet, engine="cpu")
    config = folder / "config.json"
    config.write_bytes(config.read_bytes())
    assert prepare(str(folder), tmp_path / "cache", quiet, engine="cpu") == first
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_bytes(b"\xef\xbb\xbf{{ tools }}")
    second = prepare(str(folder), tmp_path / "cache", quiet, engine="cpu")
    assert load_prepared(second).named_templates == {"tool_use": "{{ tools }}"}


def test_a_pointer_is_told_from_the_file(folder: Path, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "tokenizer.json").write_text(pointer)
    with pytest.raises(ModelError, match=r"tokenizer\.json is a Git LFS pointer.*git lfs pull"):
        prepare(str(folder), tmp_path / "cache", quiet, engine="cpu")


@pytest.mark.parametrize("engine", ["cpu", "vllm"])
def test_an_adapter_s_folder_is_called_one(tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter .LoRA.*merge_and_unload"):
        prepare(str(folder), tmp_path / "cache", quiet, engine=engine)


def test_an_openvino_folder_names_the_model_in_other_formats(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen3-8B-int4-ov"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "openvino_model.xml", "openvino_model.bin"):
        (folder / name).write_text("{}")
    with pytest.raises(ModelError, match=r"OpenVINO's format.*GGUF.*Qwen/Qwen3-8B"):
        prepare(str(folder), tmp_path / "cache", quiet, engine="cpu")


def split(tmp_path: Path) -> tuple[Path, Path]:
    """A model in two parts, as llama-gguf-split makes them."""
    whole = gguf.GGUFReader(write_gguf(tmp_path / "whole.gguf"))
    paths = (tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf")
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for key, entry in whole.fields.items():
                if key.startswith(("tokenizer.", "llama.")):
                    kind, *inner = entry.types
                    writer.add_key_value(key, entry.contents(), kind, *inner[:1])
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 2)
        writer.add_tensor(f"blk.{number}.weight", np.zeros(64, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.mark.parametrize("given", [0, 1])
def test_a_split_model_is_served_from_its_first_part(tmp_path: Path, given: int) -> None:
    paths = split(tmp_path)
    folder = prepare(str(paths[given]), tmp_path / "cache", quiet, engine="cpu")
    assert weights_path(load_prepared(folder), folder) == paths[0]


@pytest.mark.parametrize(("given", "missing"), [(0, 1), (1, 0)])
def test_a_part_alone_names_the_others(tmp_path: Path, given: int, missing: int) -> None:
    paths = split(tmp_path)
    paths[missing].unlink()
    said = f"one of 2 parts of a model.*{re.escape(paths[missing].name)}.*beside it"
    with pytest.raises(ModelError, match=said):
        prepare(str(paths[given]), tmp_path / "cache", quiet, engine="cpu")


def test_paths_may_be_any_bytes(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    source = write_gguf(tmp_path / "tiny.gguf").rename(odd / "tiny.gguf")
    folder = prepare(str(source), tmp_path / "cache", quiet, engine="cpu")
    assert weights_path(load_prepared(folder), folder) == source
    assert prepare(str(source), tmp_path / "cache", quiet, engine="cpu") == folder
