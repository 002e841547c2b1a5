"""A folder in Hugging Face's layout: config.json, a tokenizer, and weights as OpenVINO's IR (what
optimum-intel exports) or as safetensors (what vLLM loads).

Its files are linked, not copied; what else serving needs is written beside the links.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.architecture import from_config
from maestrale.models.hf_tokenizer import hf_vocabulary, mistral_version_of
from maestrale.models.load_vocabulary import save_vocabulary
from maestrale.models.mistral_vocabulary import mistral_vocabulary, shipped_file
from maestrale.models.prepared import PreparedModel, save_prepared
from maestrale.models.safetensors_file import check_safetensors
from maestrale.models.sampling_defaults import of_generation_config
from maestrale.models.store import Progress, build_once, digest_of
from maestrale.models.wanted import OPENVINO_MODEL, wanted_files
from maestrale.text_files import readable

_NEEDED = ("tokenizer.json", "config.json")


def prepare_folder(
    source: Path, store: Path, progress: Progress, *, engine: str, name: str | None = None
) -> Path:
    """The prepared model made of the folder `source`, within `store`.

    Raises: ModelError when the folder isn't such a model, lacks a part, or has a damaged one.
    """
    names = sorted(path.name for path in source.iterdir() if path.is_file())
    _check_is_model(source, names, engine)
    wanted = wanted_files(str(source), names, engine)
    if wanted.kind == "gguf":
        raise ModelError(f"{source} holds GGUF files. Name one: {source / wanted.weights}")
    missing = [file for file in _NEEDED if file not in names]
    if missing:
        raise ModelError(f"{source} is no complete model folder: it lacks {', '.join(missing)}.")
    if wanted.kind == "safetensors":
        check_safetensors(source, wanted.names)
    digests = [f"{file} {digest_of(source / file, store, progress)}" for file in wanted.names]
    parts = [str(source.resolve()), wanted.kind, *digests]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    called = name or readable(source.resolve().name)
    return build_once(
        store, digest, lambda folder: _fill(folder, source, wanted.names, called, digest), progress
    )


def _check_is_model(source: Path, names: list[str], engine: str) -> None:
    """Say what a folder lacks that holds no weights, or only half of an OpenVINO model."""
    halves = [name for name in OPENVINO_MODEL if name in names]
    weights = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    if len(halves) == 1 or (not halves and not weights):
        missing = [name for name in (*OPENVINO_MODEL, *_NEEDED) if name not in names]
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        if pickles and not halves:
            raise ModelError(
                f"{source} holds its weights as pickles ({pickles[0]}), which can run code when "
                "they are read, so they are not opened. Give safetensors, GGUF or OpenVINO files."
            )
        raise ModelError(
            f"{source} is no model folder: it lacks {', '.join(missing)}. Works: a folder made "
            "by 'optimum-cli export openvino', one from the hub with safetensors (on a GPU), or "
            "the path of a .gguf file."
        )


def _fill(folder: Path, source: Path, names: tuple[str, ...], called: str, digest: str) -> None:
    config = read_json(source / "config.json")
    tokenizer = read_json(source / "tokenizer.json")
    settings = read_json(source / "tokenizer_config.json", optional=True)
    generation = read_json(source / "generation_config.json", optional=True)
    nested = config.get("text_config")
    text = nested if isinstance(nested, Mapping) else config
    context, size = text.get("max_position_embeddings"), text.get("vocab_size")
    if not isinstance(context, int) or not isinstance(size, int) or min(context, size) < 1:
        raise ModelError(
            f"{source / 'config.json'} lacks 'max_position_embeddings' or 'vocab_size'."
        )
    bos = text.get("bos_token_id", config.get("bos_token_id"))
    ends = _end_tokens(source, generation, text, config)
    template = _chat_template(source, settings)
    for file in names:
        (folder / file).symlink_to((source / file).resolve())
    version = mistral_version_of(tokenizer, template)
    common: dict[str, Any] = {
        "name": called,
        "context_length": context,
        "vocab_size": size,
        "bos_token_id": bos if isinstance(bos, int) else None,
        "weights_digest": digest,
        "sampling": of_generation_config(generation),
        **_kv_size(config),
    }
    if version is not None:
        shipped = shipped_file(version)
        shutil.copyfile(shipped, folder / f"mistral-{shipped.name}")
        vocabulary = mistral_vocabulary(version, size)
        prepared = PreparedModel(
            **common,
            eos_token_ids=vocabulary.eos_token_ids,
            add_bos=True,
            tokenizer_kind="mistral",
            tokenizer_file=f"mistral-{shipped.name}",
            mistral_version=version,
        )
    else:
        vocabulary = hf_vocabulary(tokenizer, size, ends)
        prepared = PreparedModel(
            **common,
            eos_token_ids=ends,
            add_bos=isinstance(bos, int) and settings.get("add_bos_token") is True,
            tokenizer_kind="hf",
            tokenizer_file="tokenizer.json",
            chat_template=template,
        )
    save_vocabulary(vocabulary, folder)
    save_prepared(prepared, folder)


def _kv_size(config: Mapping[str, Any]) -> dict[str, int]:
    try:
        shape = from_config(config)
    except ModelError:
        return {}
    return {"kv_elements": shape.kv_elements, "head_dim": shape.head_dim}


def _end_tokens(source: Path, *documents: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that end an answer, by the first document that names some."""
    for document in documents:
        ends = document.get("eos_token_id")
        ends = tuple(ends) if isinstance(ends, list) else (ends,)
        if ends and all(isinstance(token, int) for token in ends):
            return ends
    raise ModelError(f"{source} names no end-of-text token (eos_token_id).")


def _chat_template(source: Path, settings: Mapping[str, Any]) -> str | None:
    file = source / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template = settings.get("chat_template")
    if template is None:
        template = read_json(source / "chat_template.json", optional=True).get("chat_template")
    if isinstance(template, list):  # several, by name
        by_name = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, Mapping)
        }
        template = by_name.get("default")
    return template if isinstance(template, str) else None


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object from a model's file. Raises: ModelError when it is none."""
    if optional and not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object.")
    return document
