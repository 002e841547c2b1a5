"""Tiny embedding models in folders as Qwen3-Embedding's and E5-Mistral's: a bare decoder, its
tensors without `model.`, sentence-transformers' files, a tokenizer that ends texts with EOS.

A token is a byte; their weights are those of tiny models that transformers was asked about.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_files as golden
from maestrale.models.vocabulary import byte_of_character
from tiny_models import write_safetensors

EOS = 256
EOS_NAME = "<|endoftext|>"
MODES = {"last": "lasttoken", "mean": "mean_tokens"}


def write_embedder(
    folder: Path, name: str = "qwen3", pooling: str = "last", architecture: str = "Qwen3ForCausalLM"
) -> Path:
    """`name`: of the tiny model whose weights it has. `pooling` "": it says of none."""
    folder.mkdir(parents=True)
    model = golden.model(name)
    weights = {
        tensor.removeprefix("model."): values
        for tensor, values in model.weights().items()
        if not tensor.startswith("lm_head")
    }
    write_safetensors(folder / "model.safetensors", weights, "F32")
    config = {**model.config, "architectures": [architecture], "eos_token_id": EOS}
    _write(folder / "config.json", config)
    _write(folder / "tokenizer.json", _tokenizer())
    _write(folder / "tokenizer_config.json", {"eos_token": EOS_NAME})
    if pooling:
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [
            {"idx": index, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(kinds.items())
        ]
        _write(folder / "modules.json", modules)
        flags = {f"pooling_mode_{mode}": mode == MODES[pooling] for mode in MODES.values()}
        (folder / "1_Pooling").mkdir()
        _write(folder / "1_Pooling" / "config.json", {**flags, "include_prompt": True})
    return folder


def _tokenizer() -> dict[str, Any]:
    special = {"id": EOS, "content": EOS_NAME, "special": True, "normalized": False}
    ends = {"single_word": False, "lstrip": False, "rstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    end = {"id": EOS_NAME, "ids": [EOS], "tokens": [EOS_NAME]}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    added = {"SpecialToken": {"id": EOS_NAME, "type_id": 0}}
    return {
        "version": "1.0",
        "added_tokens": [{**special, **ends}],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [sequence, added],
            "pair": [sequence, added],
            "special_tokens": {EOS_NAME: end},
        },
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {**byte_of_character(), EOS_NAME: EOS},
            "merges": [],
            "byte_fallback": False,
        },
    }


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document))
