"""Mistrals with random weights and the real v1 tokenizer, as GGUF files: a tiny one, and larger.

What llama.cpp's converter writes for Mistral-7B-Instruct-v0.2: architecture "llama", a
SentencePiece vocabulary with scores and types. Their answers are noise; their prompts and token
counts are Mistral's own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from sentencepiece import SentencePieceProcessor

from maestrale.models.mistral_vocabulary import shipped_file
from serving import Server, serving


class Shape(NamedTuple):
    """What makes a Mistral large or small; `quantised`: matrices as Q4_0, else as f16."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    context: int
    quantised: bool = False


TINY = Shape(2, 64, 128, 4, 2, 2048)
LLAMA_1B = Shape(16, 2048, 8192, 32, 8, 32768, quantised=True)
MISTRAL_7B = Shape(32, 4096, 14336, 32, 8, 32768, quantised=True)
MOST_BLOCKS = 65_521  # of random ones in a matrix; a prime, so that rows differ
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def write_tiny_mistral(path: Path, *, version: str = "v1", seed: int = 0) -> Path:
    """Write the model to `path` and return it. The same seed gives the same weights."""
    return write_mistral(path, TINY, version=version, seed=seed)


@contextlib.contextmanager
def serving_tiny_mistral(folder: Path, name: str, *, version: str = "v1") -> Iterator[Server]:
    """Serve one by this name, with its file and its cache in `folder`."""
    model = write_tiny_mistral(folder / "tiny-mistral.gguf", version=version)
    flags = ("--model", str(model), "--served-model-name", name)
    with serving(*flags, cache_dir=folder / "cache") as running:
        yield running


def write_mistral(path: Path, shape: Shape, *, version: str = "v1", seed: int = 0) -> Path:
    """Write a model of this shape, one tensor at a time: memory holds no more than one."""
    tokenizer = SentencePieceProcessor(model_file=str(shipped_file(version)))
    size = tokenizer.vocab_size()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Random Mistral")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(size)
    kind = gguf.LlamaFileType.MOSTLY_Q4_0 if shape.quantised else gguf.LlamaFileType.MOSTLY_F16
    writer.add_file_type(kind)
    add_tokenizer(writer, tokenizer, size)
    tensors = list(_tensors(shape, size))
    for name, dimensions in tensors:
        announce(writer, name, dimensions, shape.quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for _, dimensions in tensors:
        writer.write_tensor_data(random_values(random, dimensions, shape.quantised))
    writer.close()
    return path


def v1_tokenizer() -> SentencePieceProcessor:
    """Mistral's first, of 32,000 tokens."""
    return SentencePieceProcessor(model_file=str(shipped_file("v1")))


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: SentencePieceProcessor, size: int) -> None:
    """The vocabulary as llama.cpp's converter writes it, and a chat template."""
    types = []
    for token in range(size):
        if tokenizer.IsUnknown(token):
            types.append(gguf.TokenType.UNKNOWN)
        elif tokenizer.IsControl(token):
            types.append(gguf.TokenType.CONTROL)
        elif tokenizer.IsByte(token):
            types.append(gguf.TokenType.BYTE)
        else:
            types.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([tokenizer.id_to_piece(token) for token in range(size)])
    writer.add_token_scores([tokenizer.get_score(token) for token in range(size)])
    writer.add_token_types(types)
    writer.add_bos_token_id(tokenizer.bos_id())
    writer.add_eos_token_id(tokenizer.eos_id())
    writer.add_unk_token_id(tokenizer.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(shape: Shape, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and dimensions; one dimension is a norm, two are a matrix [rows, columns]."""
    hidden, kv = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    yield "token_embd.weight", (size, hidden)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (hidden,)
        yield f"{block}.attn_q.weight", (hidden, hidden)
        yield f"{block}.attn_k.weight", (kv, hidden)
        yield f"{block}.attn_v.weight", (kv, hidden)
        yield f"{block}.attn_output.weight", (hidden, hidden)
        yield f"{block}.ffn_norm.weight", (hidden,)
        yield f"{block}.ffn_gate.weight", (shape.feed_forward, hidden)
        yield f"{block}.ffn_up.weight", (shape.feed_forward, hidden)
        yield f"{block}.ffn_down.weight", (hidden, shape.feed_forward)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (size, hidden)


def announce(
    writer: gguf.GGUFWriter, name: str, dimensions: tuple[int, ...], quantised: bool
) -> None:
    """Say that a tensor will come, whose values `random_values` makes."""
    if len(dimensions) == 1:
        writer.add_tensor_info(name, dimensions, np.dtype(np.float32), dimensions[0] * 4)
    elif not quantised:
        count = math.prod(dimensions)
        writer.add_tensor_info(name, dimensions, np.dtype(np.float16), count * 2)
    else:
        packed = (*dimensions[:-1], dimensions[-1] // 32 * 18)
        writer.add_tensor_info(
            name,
            packed,
            np.dtype(np.uint8),
            math.prod(packed),
            raw_dtype=gguf.GGMLQuantizationType.Q4_0,
        )


def random_values(
    random: np.random.Generator, dimensions: tuple[int, ...], quantised: bool
) -> np.ndarray:
    """Weights of a standard deviation that keeps the activations of every layer in bounds."""
    if len(dimensions) == 1:
        return random.uniform(0.5, 1.5, dimensions[0]).astype(np.float32)
    if not quantised:
        return random.normal(0, 0.08, dimensions).astype(np.float16)
    # Q4_0: of each 32 weights a scale (f16), then 16 bytes of two weights each, from -8 to 7.
    # Large matrices repeat theirs: gigabytes of random numbers would take minutes.
    count = math.prod(dimensions) // 32
    blocks = random.integers(0, 256, (min(count, MOST_BLOCKS), 18), np.uint8)
    # 4.6 is the deviation of -8..7, all equally likely.
    scales = random.uniform(0.5, 1.5, len(blocks)) * (0.02 / 4.6)
    blocks[:, :2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
    return np.resize(blocks, (count, 18)).reshape(*dimensions[:-1], -1)
