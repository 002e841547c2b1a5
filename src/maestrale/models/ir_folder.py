"""A folder with an OpenVINO model and its Hugging Face tokenizer, as optimum-intel exports it.

Its big files are linked, not copied; what else serving needs is written beside the links.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.byte_level import decode_byte_level
from maestrale.models.load_vocabulary import save_vocabulary
from maestrale.models.prepared import GRAPH_FILE, WEIGHTS_FILE, PreparedModel, save_prepared
from maestrale.models.store import Progress, build_once, digest_of
from maestrale.models.vocabulary import Vocabulary

_NEEDED = (GRAPH_FILE, WEIGHTS_FILE, "tokenizer.json", "config.json")
_USED_IF_THERE = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")


def prepare_ir_folder(source: Path, store: Path, progress: Progress) -> Path:
    """The prepared model made of the folder `source`, within `store`.

    Raises: ModelError when the folder isn't such a model, or lacks a part of it.
    """
    missing = [name for name in _NEEDED if not (source / name).is_file()]
    if missing:
        raise ModelError(
            f"{source} is no model folder: it lacks {', '.join(missing)}. Works today: a folder "
            "made by 'optimum-cli export openvino', or the path of a .gguf file."
        )
    names = [*_NEEDED, *(name for name in _USED_IF_THERE if (source / name).is_file())]
    digests = [f"{name} {digest_of(source / name, store, progress)}" for name in names]
    digest = hashlib.sha256("\n".join([str(source.resolve()), *digests]).encode()).hexdigest()
    return build_once(store, digest, lambda folder: _fill(folder, source, digest), progress)


def _fill(folder: Path, source: Path, digest: str) -> None:
    config = _read_json(source / "config.json")
    tokenizer = _read_json(source / "tokenizer.json")
    settings = _read_json(source / "tokenizer_config.json", optional=True)
    generation = _read_json(source / "generation_config.json", optional=True)
    context, size = config.get("max_position_embeddings"), config.get("vocab_size")
    if not isinstance(context, int) or not isinstance(size, int):
        raise ModelError(
            f"{source / 'config.json'} lacks 'max_position_embeddings' or 'vocab_size'."
        )
    bos = config.get("bos_token_id")
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = tuple(ends) if isinstance(ends, list) else (ends,)
    if not all(isinstance(token, int) for token in ends):
        raise ModelError(f"{source} names no end-of-text token (eos_token_id).")
    for name in (GRAPH_FILE, WEIGHTS_FILE, "tokenizer.json"):
        (folder / name).symlink_to((source / name).resolve())
    save_vocabulary(_vocabulary(tokenizer, size, ends), folder)
    prepared = PreparedModel(
        name=source.resolve().name,
        context_length=context,
        vocab_size=size,
        eos_token_ids=ends,
        bos_token_id=bos if isinstance(bos, int) else None,
        add_bos=isinstance(bos, int) and settings.get("add_bos_token") is True,
        tokenizer_kind="hf",
        tokenizer_file="tokenizer.json",
        chat_template=_chat_template(source, settings),
        weights_digest=digest,
    )
    save_prepared(prepared, folder)


def _vocabulary(tokenizer: Mapping[str, Any], size: int, ends: tuple[int, ...]) -> Vocabulary:
    """What each token spells. Raises: ModelError for tokenizers other than byte-level BPE."""
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or '"ByteLevel"' not in json.dumps(tokenizer.get("decoder")):
        raise ModelError(
            "The folder's tokenizer is no byte-level BPE, the only kind of Hugging Face "
            "tokenizer that is served from a folder."
        )
    spelled = [b""] * size
    control: dict[str, int] = {}
    entries = {token: decode_byte_level(piece) for piece, token in model["vocab"].items()}
    for added in tokenizer.get("added_tokens", ()):
        entries[added["id"]] = b"" if added["special"] else added["content"].encode()
        if added["special"]:
            control[added["content"]] = added["id"]
    if max(entries) >= size:
        raise ModelError(f"The tokenizer has {max(entries) + 1} tokens, the model only {size}.")
    for token, spelling in entries.items():
        spelled[token] = spelling
    return Vocabulary(token_bytes=tuple(spelled), control_ids=control, eos_token_ids=ends)


def _chat_template(source: Path, settings: Mapping[str, Any]) -> str | None:
    file = source / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        by_name = {entry["name"]: entry["template"] for entry in template}
        template = by_name.get("default")
    return template if isinstance(template, str) else None


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object.")
    return document
