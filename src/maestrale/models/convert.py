"""One GGUF file → the files of a prepared model, in a folder that stands empty."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from maestrale.errors import ModelError
from maestrale.models.architecture import gguf_shape
from maestrale.models.gguf_file import GGUFFile, read_gguf
from maestrale.models.gguf_tokenizer import (
    byte_level_tokenizer,
    byte_level_vocabulary,
    end_token_ids,
    pieces_of,
)
from maestrale.models.load_vocabulary import save_vocabulary
from maestrale.models.mistral_vocabulary import mistral_vocabulary, recognise, shipped_file
from maestrale.models.prepared import GRAPH_FILE, WEIGHTS_FILE, PreparedModel, save_prepared
from maestrale.models.sampling_defaults import NEUTRAL, SamplingDefaults, of_gguf

Progress = Callable[[str, float | None], None]

# What the GGUF reader of OpenVINO GenAI knows (Mistral's models are "llama").
ARCHITECTURES = ("llama", "qwen2", "qwen3")
CONVERSION_TIMEOUT = 3600.0  # seconds; a 7B model takes minutes
MAX_PADDING = 100_000  # rows of logits that stand for no token


def convert_gguf(
    source: Path,
    folder: Path,
    *,
    name: str,
    digest: str,
    progress: Progress,
    sampling: SamplingDefaults = NEUTRAL,
) -> None:
    """Fill `folder` with the prepared model of the GGUF file `source`.

    `sampling` stands where the file itself does not say how it is to be sampled.

    Raises: ModelError when the file is damaged, of an unknown kind, or can't be converted.
    """
    progress("Reading the GGUF file", None)
    gguf = read_gguf(source)
    architecture = gguf.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{source} is a model of the architecture {architecture!r}. From GGUF files "
            f"{', '.join(ARCHITECTURES)} (and what is built like them) can be served. Look for "
            "the same model in OpenVINO's format (https://huggingface.co/OpenVINO)."
        )
    prepared = _prepare_tokenizer(gguf, folder, name=name, digest=digest)
    sampling = of_gguf(gguf.metadata) or sampling
    progress("Converting weights to OpenVINO (once)", None)
    _convert_weights(source, folder)
    save_prepared(structs.replace(prepared, sampling=sampling), folder)


def _prepare_tokenizer(gguf: GGUFFile, folder: Path, *, name: str, digest: str) -> PreparedModel:
    """Write tokenizer and vocabulary; return the metadata of the model."""
    metadata = gguf.metadata
    vocab_size = _vocab_size(metadata)
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    common: dict[str, Any] = {
        "name": name,
        "context_length": _context_length(metadata),
        "vocab_size": vocab_size,
        "bos_token_id": bos if isinstance(bos, int) else None,
        "weights_digest": digest,
        **_kv_size(metadata),
    }
    version = recognise(metadata)
    template = metadata.get("tokenizer.chat_template")
    if version is not None:
        file = shipped_file(version)
        shutil.copyfile(file, folder / file.name)
        vocabulary = mistral_vocabulary(version, vocab_size)
        save_vocabulary(vocabulary, folder)
        return PreparedModel(
            **common,
            eos_token_ids=vocabulary.eos_token_ids,
            add_bos=True,
            tokenizer_kind="mistral",
            tokenizer_file=file.name,
            mistral_version=version,
        )
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelError(
            f"The GGUF file has a tokenizer of kind {kind!r} that is not one of Mistral's. Served "
            "from a GGUF file are models with Mistral's tokenizer and chat format, or with a "
            "byte-level BPE tokenizer (kind 'gpt2'). Convert the model from its Hugging Face "
            "folder with optimum-intel and give that folder instead."
        )
    document = byte_level_tokenizer(metadata)
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    save_vocabulary(byte_level_vocabulary(metadata, vocab_size), folder)
    return PreparedModel(
        **common,
        eos_token_ids=end_token_ids(metadata),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        tokenizer_kind="hf",
        tokenizer_file="tokenizer.json",
        chat_template=template if isinstance(template, str) else None,
    )


def _kv_size(metadata: dict[str, Any]) -> dict[str, int]:
    try:
        shape = gguf_shape(metadata)
    except ModelError:
        return {}
    return {"kv_elements": shape.kv_elements, "head_dim": shape.head_dim}


def _convert_weights(source: Path, folder: Path) -> None:
    link = folder / "model.gguf"  # OpenVINO GenAI writes its files beside the GGUF file
    link.symlink_to(source.resolve())
    script = Path(__file__).with_name("gguf_to_ir.py")
    try:
        result = subprocess.run(  # noqa: S603 (our own script and a path, no shell)
            [sys.executable, "-P", str(script), str(link), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=CONVERSION_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"Converting {source} took more than {CONVERSION_TIMEOUT:.0f} s and was stopped."
        ) from error
    finally:
        link.unlink()
    if result.returncode != 0:
        raise ModelError(f"OpenVINO can't convert {source}: {_reason(result)}.")
    if not (folder / GRAPH_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"OpenVINO converted {source} but wrote no model. Is the disk full?")


def _reason(result: subprocess.CompletedProcess[bytes]) -> str:
    if result.returncode < 0:
        return (
            f"its converter was ended by signal {-result.returncode} "
            "(the file is damaged, or memory ran out)"
        )
    lines = [line.strip() for line in result.stderr.decode("utf-8", "replace").splitlines()]
    return next((line.rstrip(".") for line in reversed(lines) if line), "it gave no reason")


def _context_length(metadata: dict[str, Any]) -> int:
    key = f"{metadata.get('general.architecture')}.context_length"
    length = metadata.get(key)
    if not isinstance(length, int) or length < 1:
        raise ModelError(f"The GGUF file doesn't say how long its context is ({key}).")
    return length


def _vocab_size(metadata: dict[str, Any]) -> int:
    stated = metadata.get(f"{metadata.get('general.architecture')}.vocab_size", 0)
    count = len(pieces_of(metadata)[0])
    if not isinstance(stated, int) or stated > count + MAX_PADDING:
        raise ModelError(f"The GGUF file is damaged: {count} tokens, but a vocabulary of {stated}.")
    return max(count, stated)
