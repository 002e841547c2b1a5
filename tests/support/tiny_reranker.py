"""Tiny rerankers: as Qwen3-Reranker's GGUF files, as its folders of one label, and as the original.

A token is a byte, and there are words for yes and no. Their weights are those of the tiny qwen3
that transformers was asked about: a score is what it says of these two tokens.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray

import golden_files as golden
from maestrale.models.vocabulary import byte_of_character
from rewritten_gguf import Q8_0, Tensors, rewritten
from tiny_models import VOCAB, write_safetensors

NAME = "qwen3"
YES, NO = 260, 261
MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
PLACE, SCORE = "1_LogitScore", "cross_encoder.modules.logit_score.LogitScore"
EOS = 256 + MARKS.index("<|im_end|>")
TEMPLATE = "<|im_start|>{query}\n{document}<|im_end|>"


def head() -> NDArray[np.float32]:
    """The rows of logits: the embedding, to which they are tied."""
    rows: NDArray[np.float32] = golden.model(NAME).weights()["model.embed_tokens.weight"]
    return rows


def golden_score(position: int = -1) -> float:
    """What transformers' logits make of the tiny model's own text, up to a position of it."""
    row = golden.logits(NAME)[position].astype(np.float64)
    return 1 / (1 + math.exp(row[NO] - row[YES]))


def write_original(folder: Path) -> Path:
    """As Qwen3-Reranker is published: a chat model."""
    model = golden.model(NAME)
    return _write_folder(folder, model.weights(), model.config)


def write_scored(folder: Path, **changed: Any) -> Path:
    """As the original with sentence-transformers' files, which say what its score is made of."""
    write_original(folder)
    kinds = {"": "base.modules.transformer.Transformer", PLACE: SCORE}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    _write(folder / "modules.json", modules)
    (folder / PLACE).mkdir()
    _write(folder / PLACE / "config.json", {"true_token_id": YES, "false_token_id": NO, **changed})
    return folder


def write_classifier(folder: Path, labels: tuple[str, ...] = ("LABEL_0",), **config: Any) -> Path:
    """As the original converted for classification: of one label, or `labels`."""
    model, rows = golden.model(NAME), head()
    weights = dict(model.weights())
    known = {"yes": rows[YES], "no": rows[NO]}
    score = [known.get(label, rows[YES] - rows[NO]) for label in labels]
    weights["score.weight"] = np.stack(score)
    named = {str(index): label for index, label in enumerate(labels)}
    made = {**model.config, "architectures": ["Qwen3ForSequenceClassification"], "id2label": named}
    return _write_folder(folder, weights, {**made, **config})


def write_gguf(
    path: Path, labels: list[str] | None = None, *, quantised: bool = False, **keys: Any
) -> Path:
    """As llama.cpp's converter makes it: rows of yes and no, and a template with their places."""

    def change(values: dict[str, Any], tensors: Tensors) -> None:
        values["qwen3.pooling_type"] = 4
        values["qwen3.classifier.output_labels"] = labels or ["yes", "no"]
        values["tokenizer.chat_template.rerank"] = TEMPLATE
        values["tokenizer.ggml.model"] = "gpt2"
        values["tokenizer.ggml.pre"] = "qwen2"
        values["tokenizer.ggml.tokens"] = _pieces()
        values["tokenizer.ggml.token_type"] = [3 if piece in MARKS else 1 for piece in _pieces()]
        values["tokenizer.ggml.merges"] = ["y e", "ye s", "n o"]
        values["tokenizer.ggml.eos_token_id"] = EOS
        values.update(keys)
        rows = head()
        weight = np.stack([rows[YES], rows[NO]]).astype(np.float32)
        tensors["cls.output.weight"] = quantize(weight, Q8_0) if quantised else weight

    plain = golden.gguf_file(NAME, path.parent)
    return rewritten(plain, path, change)


def _pieces() -> list[str]:
    """The vocabulary: bytes, marks, words, and what fills it up."""
    by_byte = {byte: character for character, byte in byte_of_character().items()}
    pieces = [*(by_byte[byte] for byte in range(256)), *MARKS, "yes", "no", "ye"]
    return pieces + [f"<unused{number}>" for number in range(len(pieces), VOCAB)]


def _write_folder(folder: Path, weights: dict[str, Any], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", weights, "F32")
    _write(folder / "config.json", {**config, "eos_token_id": EOS})
    _write(folder / "tokenizer.json", _tokenizer())
    _write(folder / "tokenizer_config.json", {"eos_token": MARKS[1]})
    return folder


def _tokenizer() -> dict[str, Any]:
    ends = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    pieces = {piece: index for index, piece in enumerate(_pieces())}
    added = [{"id": pieces[mark], "content": mark, "special": True, **ends} for mark in MARKS]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": pieces,
            "merges": ["y e", "ye s", "n o"],
            "byte_fallback": False,
        },
    }


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document))
