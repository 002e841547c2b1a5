"""A prepared model: a folder in the cache with all that serving needs, ready to load.

    openvino_model.xml, .bin   weights as an OpenVINO IR (from the GGUF, converted once)
    tokenizer.json             Hugging Face tokenizer (tokenizer_kind "hf"), or the Mistral
                               tokenizer file named by `tokenizer_file` (kind "mistral")
    chat_template.jinja        only for tokenizer_kind "hf"
    maestrale.json             this struct
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from maestrale.errors import ModelError

METADATA_FILE = "maestrale.json"


class PreparedModel(Struct, frozen=True, kw_only=True):
    """What is known of a prepared model. Lengths in tokens; `weights_digest` is a SHA-256."""

    name: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    tokenizer_kind: Literal["hf", "mistral"]
    tokenizer_file: str  # relative to the folder
    mistral_version: str | None = None  # "v1", "v3", ... for tokenizer_kind "mistral"
    chat_template: str | None = None
    weights_digest: str
    format_version: int = 1


def load_prepared(folder: Path) -> PreparedModel:
    """Read `maestrale.json` of a prepared model.

    Raises: ModelError when the folder is not one, or was written by another version.
    """
    path = folder / METADATA_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=PreparedModel)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(f"{folder} is not a prepared model: {error}") from error
