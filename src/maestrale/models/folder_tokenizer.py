"""A Hugging Face folder's tokenizer: tokenizer.json, Mistral's tekken.json, or tokenizer.model.

What serving needs of it is written into the prepared model's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.folder_words import (
    added_tokens,
    around_text,
    chat_templates,
    completed,
    end_tokens,
    read_json,
    read_settings,
    special_tokens,
)
from maestrale.models.hf_tokenizer import hf_vocabulary, ids_of, mistral_version_of
from maestrale.models.mistral_vocabulary import (
    TEKKEN_FILE,
    mistral_vocabulary,
    recognise,
    shipped_file,
    tekken_vocabulary,
)
from maestrale.models.sentencepiece_model import SentencePieceModel, read_model, save_model
from maestrale.models.vocabulary import Vocabulary

DOCUMENT, MODEL = "tokenizer.json", "tokenizer.model"
TOKENIZERS = (DOCUMENT, TEKKEN_FILE, MODEL)
# The names of a SentencePiece model's own special tokens.
_SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def write_tokenizer(
    source: Path, folder: Path, size: int, documents: tuple[Mapping[str, Any], ...]
) -> tuple[dict[str, Any], Vocabulary]:
    """Write the tokenizer of the folder `source` into `folder`.

    `size`: rows of logits; `documents`: those that name end tokens, beside the tokenizer's own.
    Returns the fields of the PreparedModel that it decides, and what its tokens spell.

    Raises: ModelError when it is damaged, or of a kind that isn't served.
    """
    settings = read_settings(source)
    template, named = chat_templates(source, settings)
    if (source / DOCUMENT).is_file():
        document = read_json(source / DOCUMENT)
        version = mistral_version_of(document, template)
        if version is None and (template is not None or not (source / TEKKEN_FILE).is_file()):
            vocabulary, fields = _hugging_face(source, folder, document, settings, size, documents)
            return fields | {"chat_template": template, "named_templates": named}, vocabulary
        if version is not None:
            _, suffix = around_text(document, ids_of(document))
            return _mistral(version, folder, size, settings, suffix)
    if (source / TEKKEN_FILE).is_file():
        return _tekken(source / TEKKEN_FILE, folder, size)
    model = read_model(source / MODEL)
    version = _version_of(model, template)
    if version is not None:
        return _mistral(version, folder, size, settings)
    vocabulary, fields = _sentencepiece(source, folder, model, settings, size, documents)
    return fields | {"chat_template": template, "named_templates": named}, vocabulary


def _hugging_face(
    source: Path,
    folder: Path,
    document: Mapping[str, Any],
    settings: Mapping[str, Any],
    size: int,
    documents: tuple[Mapping[str, Any], ...],
) -> tuple[Vocabulary, dict[str, Any]]:
    whole = completed(document, source, settings)
    ids, special = ids_of(whole), special_tokens(settings)
    ends = end_tokens(source, special.get("eos_token"), ids, size, *documents)
    vocabulary = hf_vocabulary(whole, size, ends)
    name = DOCUMENT
    if whole is not document:
        name = f"completed.{DOCUMENT}"  # tokenizer.json may be linked already
        (folder / name).write_text(json.dumps(whole))
    elif not (folder / name).exists():
        shutil.copyfile(source / name, folder / name)
    prefix, suffix = around_text(whole, ids)
    return vocabulary, {
        "eos_token_ids": ends,
        "text_prefix": prefix,
        "text_suffix": suffix,
        "tokenizer_kind": "hf",
        "tokenizer_file": name,
        "special_tokens": special,
    }


def _sentencepiece(
    source: Path,
    folder: Path,
    model: SentencePieceModel,
    settings: Mapping[str, Any],
    size: int,
    documents: tuple[Mapping[str, Any], ...],
) -> tuple[Vocabulary, dict[str, Any]]:
    if settings.get("add_prefix_space") is False:
        model = model.without_prefix()
    ids = model.ids()
    known = {role: name for role, name in _SENTENCEPIECE.items() if name in ids}
    named = special_tokens(settings)  # the first Llama's folders name them "", all three
    special = {**known, **{role: name for role, name in named.items() if name}}
    added = added_tokens(source, settings)
    ids |= {token["content"]: token["id"] for token in added}
    ends = end_tokens(source, special.get("eos_token"), ids, size, *documents)
    vocabulary = model.with_added(added, size).vocabulary(size, ends)
    name = f"sentencepiece.{MODEL}"  # tokenizer.model may be linked already
    listed = {token["id"] for token in added}
    own = [token for token in model.added_tokens() if token["id"] not in listed]
    # transformers calls it legacy to write a space behind control tokens, too.
    first_only = settings.get("legacy") is not True
    save_model(model, [*own, *added], folder, name, first_only=first_only)
    bos, eos = ids.get(special.get("bos_token", "")), ids.get(special.get("eos_token", ""))
    return vocabulary, {
        "eos_token_ids": ends,
        "text_prefix": (bos,) if settings.get("add_bos_token", True) and bos is not None else (),
        "text_suffix": (eos,) if settings.get("add_eos_token") and eos is not None else (),
        "tokenizer_kind": "sentencepiece",
        "tokenizer_file": name,
        "special_tokens": special,
    }


def _mistral(
    version: str,
    folder: Path,
    size: int,
    settings: Mapping[str, Any],
    suffix: tuple[int, ...] = (),
) -> tuple[dict[str, Any], Vocabulary]:
    """With the file that mistral-common ships, whose name tells it the version.

    `suffix`: what the folder's own tokenizer puts behind a text; so does transformers where the
    settings say `add_eos_token`, as E5-Mistral's do.
    """
    shipped = shipped_file(version)
    name = f"mistral-{shipped.name}"
    shutil.copyfile(shipped, folder / name)
    vocabulary = mistral_vocabulary(version, size)
    if not suffix and settings.get("add_eos_token") is True:
        suffix = vocabulary.eos_token_ids[:1]
    return {
        "eos_token_ids": vocabulary.eos_token_ids,
        "text_suffix": suffix,
        "tokenizer_kind": "mistral",
        "tokenizer_file": name,
        "mistral_version": version,
    }, vocabulary


def _tekken(file: Path, folder: Path, size: int) -> tuple[dict[str, Any], Vocabulary]:
    vocabulary, version = tekken_vocabulary(file, size)
    name = f"mistral-{TEKKEN_FILE}"
    shutil.copyfile(file, folder / name)
    return {
        "eos_token_ids": vocabulary.eos_token_ids,
        "tokenizer_kind": "mistral",
        "tokenizer_file": name,
        "mistral_version": f"{version}-tekken",
    }, vocabulary


def _version_of(model: SentencePieceModel, template: str | None) -> str | None:
    return recognise(
        {
            "tokenizer.ggml.tokens": [piece.text for piece in model.pieces],
            "tokenizer.ggml.model": "llama",
            "tokenizer.chat_template": template,
        }
    )


def lacking(source: Path) -> ModelError:
    """What to say of a folder without any tokenizer."""
    return ModelError(
        f"{source} is no complete model folder: it lacks {DOCUMENT} (or {TEKKEN_FILE}, or {MODEL})."
        " Download it again with all its files; of an old folder with other files, AutoTokenizer's"
        " save_pretrained makes one."
    )
