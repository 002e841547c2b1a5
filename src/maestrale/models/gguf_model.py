"""What a GGUF file says of its model: tokenizer, templates, end tokens, length of the context.

Written into a prepared model's folder: the tokenizer's file and the vocabulary.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import structs

from maestrale.errors import ModelError
from maestrale.models.fim_tokens import stated_marks
from maestrale.models.gguf_file import check_is_model, read_gguf_model
from maestrale.models.gguf_tokenizer import (
    byte_level_tokenizer,
    byte_level_vocabulary,
    control_ids,
    end_token_ids,
    pieces_of,
    pre_tokenizer_of,
    token_id,
)
from maestrale.models.mistral_vocabulary import mistral_vocabulary, recognise, shipped_file
from maestrale.models.pooling import pooling_of_gguf
from maestrale.models.prepared import PreparedModel, named_source, save_prepared
from maestrale.models.sampling_defaults import SamplingDefaults, of_gguf
from maestrale.models.sentencepiece_model import added_tokens, save_model, sentencepiece_model
from maestrale.models.vocabulary import save_vocabulary

MAX_PADDING = 100_000  # rows of logits that stand for no token
_TEMPLATE = "tokenizer.chat_template"
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # ours: the file's


def fill_from_gguf(source: Path, folder: Path, *, name: str, sampling: SamplingDefaults) -> None:
    """Fill `folder` with the prepared model of a GGUF file, whose weights stay where they are.

    Raises: ModelError when the file is damaged, or of a kind that can't be served.
    """
    metadata = read_gguf_model(source).metadata
    check_is_model(metadata, source)
    prepared = write_tokenizer(metadata, folder, name=name, sampling=sampling)
    save_prepared(structs.replace(prepared, source=named_source(source, folder)), folder)


def write_tokenizer(
    metadata: Mapping[str, Any], folder: Path, *, name: str, sampling: SamplingDefaults
) -> PreparedModel:
    """Write tokenizer and vocabulary into `folder`; return what the file says of its model.

    `sampling` stands where the file itself does not say how it is to be sampled.

    Raises: ModelError when the metadata is damaged, or of a kind that can't be served.
    """
    vocab_size = _vocab_size(metadata)
    common: dict[str, Any] = {
        "name": name,
        "context_length": _context_length(metadata),
        "vocab_size": vocab_size,
        "sampling": of_gguf(metadata) or sampling,
        "pooling": pooling_of_gguf(metadata),
    }
    version = recognise(metadata)
    if version is not None:
        file = shipped_file(version)
        shutil.copyfile(file, folder / file.name)
        vocabulary = mistral_vocabulary(version, vocab_size)
        save_vocabulary(vocabulary, folder)
        return PreparedModel(
            **common,
            eos_token_ids=vocabulary.eos_token_ids,
            text_suffix=_around(metadata, True)[1],
            tokenizer_kind="mistral",
            tokenizer_file=file.name,
            mistral_version=version,
        )
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "llama":
        model = sentencepiece_model(metadata)
        save_model(model, added_tokens(metadata), folder, "tokenizer.model")
        vocabulary = model.vocabulary(vocab_size, end_token_ids(metadata))
        default_bos, name_of_file = True, "tokenizer.model"
    elif kind in ("gpt2", "gemma4"):
        document = byte_level_tokenizer(metadata)
        (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8")
        vocabulary = byte_level_vocabulary(metadata, vocab_size)
        default_bos, name_of_file = pre_tokenizer_of(metadata).add_bos, "tokenizer.json"
    else:
        raise ModelError(
            f"The GGUF file has a tokenizer of the kind {kind!r}, which isn't served. Served are "
            "byte-level BPE (gpt2), SentencePiece (llama) and Mistral's tokenizers."
        )
    save_vocabulary(vocabulary, folder)
    prefix, suffix = _around(metadata, default_bos)
    default, named = chat_templates(metadata)
    return PreparedModel(
        **common,
        eos_token_ids=vocabulary.eos_token_ids,
        text_prefix=prefix,
        text_suffix=suffix,
        tokenizer_kind="sentencepiece" if kind == "llama" else "hf",
        tokenizer_file=name_of_file,
        chat_template=default,
        named_templates=named,
        special_tokens=_special_tokens(metadata),
        fim_token_ids=stated_marks(metadata, len(pieces_of(metadata)[0])),
    )


def chat_templates(metadata: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """The file's chat template, and those that it has by name (tool_use, rag)."""
    default = metadata.get(_TEMPLATE)
    named = {
        key.removeprefix(f"{_TEMPLATE}."): value
        for key, value in metadata.items()
        if key.startswith(f"{_TEMPLATE}.") and isinstance(value, str)
    }
    fallback = named.pop("default", None)
    return (default if isinstance(default, str) else fallback), named


def _around(metadata: Mapping[str, Any], bos: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after plain text; `bos` where the file doesn't say."""
    count = len(pieces_of(metadata)[0])
    first = token_id(metadata, "bos", count) if _flag(metadata, "bos", bos) else None
    if (
        first is None
        and _flag(metadata, "bos", bos)
        and metadata.get("tokenizer.ggml.model") == "llama"
    ):
        first = control_ids(metadata).get("<s>")
    last = token_id(metadata, "eos", count) if _flag(metadata, "eos", False) else None
    return (() if first is None else (first,)), (() if last is None else (last,))


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.add_{name}_token")
    return value if isinstance(value, bool) else default


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What a chat template calls bos_token, eos_token ..."""
    pieces, _ = pieces_of(metadata)
    ids = {name: token_id(metadata, key, len(pieces)) for name, key in _SPECIAL.items()}
    return {f"{name}_token": pieces[id_] for name, id_ in ids.items() if id_ is not None}


def _context_length(metadata: Mapping[str, Any]) -> int:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError(
            "The GGUF file doesn't say of which architecture its model is (general.architecture), "
            "so it can't be served. Take another GGUF file of the model."
        )
    key = f"{architecture}.context_length"
    length = metadata.get(key)
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ModelError(f"The GGUF file doesn't say how long its context is ({key}).")
    return length


def _vocab_size(metadata: Mapping[str, Any]) -> int:
    stated = metadata.get(f"{metadata.get('general.architecture')}.vocab_size", 0)
    count = len(pieces_of(metadata)[0])
    if not isinstance(stated, int) or stated > count + MAX_PADDING:
        raise ModelError(f"The GGUF file is damaged: {count} tokens, but a vocabulary of {stated}.")
    return max(count, stated)
