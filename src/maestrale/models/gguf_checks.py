"""GGUF files that are no language models, or none that can be served: each is called what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maestrale.errors import ModelError

# general.type of GGUF files that hold no language model, and what they are
_OTHER_TYPES = {
    "mmproj": "the image or audio part of a model (mmproj). Give the file of the language model",
    "imatrix": "a table of importances, made for quantising. Give the file of the model",
}
_OTHER_TOKENIZERS = {
    "bert": "WordPiece, an encoder's",
    "t5": "T5's",
    "rwkv": "RWKV's",
    "plamo2": "PLaMo 2's",
    "whitespace": "one of single words, an encoder's",
    "hybriddna": "one of DNA sequences",
}


def check_is_model(metadata: Mapping[str, Any], path: Path) -> None:
    """Raises: ModelError for a GGUF file that holds something else than a language model."""
    kind = metadata.get("general.type")
    architecture = metadata.get("general.architecture")
    if kind == "adapter" or any(key.startswith("adapter.") for key in metadata):
        raise ModelError(
            f"{path} is an adapter (LoRA), not a model by itself. Merge it into its base model "
            "(llama-export-lora), and give the merged file."
        )
    if architecture == "clip":
        kind = "mmproj"
    if isinstance(kind, str) and kind in _OTHER_TYPES:
        raise ModelError(f"{path} is {_OTHER_TYPES[kind]}.")
    name = metadata.get("tokenizer.ggml.model")
    if isinstance(name, str) and name in _OTHER_TOKENIZERS:
        raise ModelError(
            f"{path} has a tokenizer of a kind that is not served here: {_OTHER_TOKENIZERS[name]} "
            f"({name!r}). Served are byte-level BPE, SentencePiece and Mistral's tokenizers."
        )
