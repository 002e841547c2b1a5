"""A prepared model: a folder in the cache with all that serving needs, ready to load.

openvino_model.xml, .bin   weights as an OpenVINO IR (from the GGUF, converted once)
tokenizer.json             Hugging Face tokenizer (tokenizer_kind "hf"), or the Mistral
                           tokenizer file named by `tokenizer_file` (kind "mistral")
vocabulary.msgpack         what each token spells (models/load_vocabulary.py)
maestrale.json             this struct
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from maestrale.errors import ModelError
from maestrale.models.sampling_defaults import NEUTRAL, SamplingDefaults

METADATA_FILE = "maestrale.json"
WEIGHTS_FILE = "openvino_model.bin"
GRAPH_FILE = "openvino_model.xml"
FORMAT_VERSION = 3


class PreparedModel(Struct, frozen=True, kw_only=True):
    """What is known of a prepared model. Lengths in tokens; `weights_digest` is a SHA-256.

    `vocab_size` is the length of a row of logits. `add_bos` tells that plain text (not chat,
    whose template decides) begins with `bos_token_id`. `sizes` holds the bytes of each file
    beside this one, by name: a folder that differs was damaged. `kv_elements`: what one token
    adds to the KV cache, keys and values in all layers; with `head_dim` it tells beforehand what
    fits (both None where the source doesn't say). `sampling`: how its makers want it sampled.
    """

    name: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    add_bos: bool = False
    tokenizer_kind: Literal["hf", "mistral"]
    tokenizer_file: str  # relative to the folder
    mistral_version: str | None = None  # "v1", "v3", ... for tokenizer_kind "mistral"
    chat_template: str | None = None
    weights_digest: str
    kv_elements: int | None = None
    head_dim: int | None = None
    sampling: SamplingDefaults = NEUTRAL
    sizes: dict[str, int] = {}
    format_version: int = FORMAT_VERSION


def load_prepared(folder: Path) -> PreparedModel:
    """Read `maestrale.json` of a prepared model.

    Raises: ModelError when the folder is not one, or was written by another version.
    """
    path = folder / METADATA_FILE
    try:
        prepared = msgspec.json.decode(path.read_bytes(), type=PreparedModel)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{folder} is not a prepared model: {error}") from error
    if prepared.format_version != FORMAT_VERSION:
        raise ModelError(
            f"{folder} was prepared by another version of maestrale (format "
            f"{prepared.format_version}; this one reads {FORMAT_VERSION}). Delete it; it will be "
            "made anew."
        )
    return prepared


def save_prepared(prepared: PreparedModel, folder: Path) -> None:
    """Write `maestrale.json`, with the sizes of the files that stand in `folder`."""
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    sizes.pop(METADATA_FILE, None)
    complete = msgspec.structs.replace(prepared, sizes=sizes)
    (folder / METADATA_FILE).write_bytes(
        msgspec.json.format(msgspec.json.encode(complete), indent=2)
    )


def is_intact(folder: Path) -> bool:
    """Whether the folder is a prepared model whose files are all there in full."""
    try:
        prepared = load_prepared(folder)
        return all((folder / name).stat().st_size == n for name, n in prepared.sizes.items())
    except (ModelError, OSError):
        return False
