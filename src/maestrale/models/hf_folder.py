"""A folder in Hugging Face's layout: config.json, a tokenizer, and weights as safetensors.

The CPU engine reads the weights where they are; for the other engines the folder's files are
linked. What else serving needs is written beside the metadata.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.file_selection import OPENVINO_MODEL, FileSelection, select_files
from maestrale.models.folder_tokenizer import TOKENIZERS, lacking, write_tokenizer
from maestrale.models.folder_words import TEMPLATE_FOLDER, read_json
from maestrale.models.pooling import POOLING_FILES, is_reranker, pooling_of_folder
from maestrale.models.prepared import PreparedModel, named_source, save_prepared
from maestrale.models.safetensors_file import check_safetensors
from maestrale.models.sampling_defaults import of_generation_config
from maestrale.models.store import Progress, build_once, digest_of, key_of, stamp_of
from maestrale.models.vocabulary import save_vocabulary
from maestrale.text_files import readable

MOST_TOKENS = 1 << 22  # a vocabulary has some 260,000 at most; more would fill the memory
_NEEDED = ("tokenizer.json", "config.json")


def prepare_folder(
    source: Path, store: Path, progress: Progress, *, engine: str, name: str | None = None
) -> Path:
    """The prepared model made of the folder `source`, within `store`.

    Raises: ModelError when the folder isn't such a model, lacks a part, or has a damaged one.
    """
    names = files_of(source)
    _check_is_model(source, names)
    selection = select_files(str(source), names, engine, local=True)
    if selection.kind == "gguf":
        raise ModelError(f"{source} holds a GGUF file. Name it: {source / selection.weights}")
    if "config.json" not in names:
        raise ModelError(f"{source} is no complete model folder: it lacks config.json.")
    if not any(file in names for file in TOKENIZERS):
        raise lacking(source)
    if selection.kind == "safetensors":
        check_safetensors(source, selection.names)
    called = name or readable(source.resolve().name)
    if engine == "cpu":
        parts = [str(source.absolute()), engine, called]
        parts += [_mark(source / file, store, progress) for file in selection.names]
        digest = ""
    else:
        parts = [f"{file} {digest_of(source / file, store, progress)}" for file in selection.names]
        parts[:0] = [str(source.resolve()), selection.kind]
        digest = key_of(parts)
    return build_once(
        store,
        digest or key_of(parts),
        lambda folder: _fill(folder, source, selection, called, digest),
        progress,
    )


def files_of(folder: Path) -> list[str]:
    """The names of the files of a folder, with those of its chat templates and its pooling."""
    files = [path.name for path in folder.iterdir() if path.is_file()]
    files += [f"{TEMPLATE_FOLDER}/{path.name}" for path in folder.glob(f"{TEMPLATE_FOLDER}/*")]
    for pattern in POOLING_FILES:
        files += [f"{path.parent.name}/{path.name}" for path in folder.glob(pattern)]
    return sorted(files)


def _mark(file: Path, store: Path, progress: Progress) -> str:
    """What changes with the file: of weights their size and time, of all else the content."""
    if file.suffix == ".safetensors":
        return f"{file.name} {stamp_of(file)}"
    return f"{file.name} {digest_of(file, store, progress)}"


def _check_is_model(source: Path, names: list[str]) -> None:
    """Say what a folder lacks that holds no weights."""
    if any(name.endswith((".safetensors", ".gguf")) for name in names):
        return
    if "adapter_config.json" in names and "config.json" not in names:
        raise _adapter(source)
    if any(name in names for name in OPENVINO_MODEL):
        return  # refused by what is there instead
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        raise ModelError(
            f"{source} holds its weights as pickles ({pickles[0]}), which can run code when "
            "they are read, so they are not opened. Give safetensors or GGUF files."
        )
    missing = ["weights (*.safetensors)", *(name for name in _NEEDED if name not in names)]
    raise ModelError(
        f"{source} is no model folder: it lacks {', '.join(missing)}. Works: a folder in Hugging "
        "Face's layout with safetensors, or the path of a .gguf file."
    )


def _adapter(source: Path) -> ModelError:
    base = read_json(source / "adapter_config.json").get("base_model_name_or_path")
    of = f" of {base}" if isinstance(base, str) and base else ""
    return ModelError(
        f"{source} is an adapter (LoRA){of}, not a model by itself. Merge it into its base model "
        "(with peft: merge_and_unload, then save_pretrained), and give the merged folder."
    )


def _count(source: Path, config: Mapping[str, Any], key: str, most: float = math.inf) -> int:
    """A number of config.json. Raises: ModelError."""
    value = config.get(key)
    if value is None:
        raise ModelError(f"{source / 'config.json'} lacks '{key}'. Download it again.")
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ModelError(
            f"{source / 'config.json'}: '{key}' is {str(value)[:40]!r}, which can't be. Download "
            "it again, or take another model."
        )
    return value


def _fill(folder: Path, source: Path, selection: FileSelection, called: str, digest: str) -> None:
    config = read_json(source / "config.json")
    generation = read_json(source / "generation_config.json", optional=True)
    nested = config.get("text_config")
    text = nested if isinstance(nested, Mapping) else config
    context = _count(source, text, "max_position_embeddings")
    size = _count(source, text, "vocab_size", MOST_TOKENS)
    if digest:
        for file in selection.names:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).symlink_to((source / file).resolve())
    fields, vocabulary = write_tokenizer(source, folder, size, (generation, text, config))
    prepared = PreparedModel(
        name=called,
        context_length=context,
        vocab_size=size,
        source="" if digest else named_source(source, folder),
        weights_digest=digest,
        sampling=of_generation_config(generation),
        pooling="rank"
        if is_reranker(config)
        else pooling_of_folder(source, vocabulary.token_bytes),
        headless=_is_headless(config),
        **fields,
    )
    save_vocabulary(vocabulary, folder)
    save_prepared(prepared, folder)


def _is_headless(config: Mapping[str, Any]) -> bool:
    """Whether it was saved as a bare decoder: MistralModel, where chat is MistralForCausalLM."""
    classes = config.get("architectures")
    return isinstance(classes, list) and bool(classes) and str(classes[0]).endswith("Model")
