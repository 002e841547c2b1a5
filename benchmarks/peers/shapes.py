"""Usual shapes of models, and the types that their tensors have in a GGUF file.

The types of tensors are those that llama.cpp's quantiser picks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("Q4_0", "Q4_K_M")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The dimensions of a decoder."""

    title: str
    architecture: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    width: int
    """Of a head."""
    vocab: int
    theta: float
    tied: bool = False
    head_norms: bool = False
    rope_factors: bool = False
    experts: int = 0
    used: int = 0
    context: int = 32768

    @property
    def attention_operations(self) -> int:
        """Of one token for each token that it sees."""
        return 4 * self.layers * self.heads * self.width


SHAPES = {
    "llama-3.2-1b": Shape(
        title="Llama-3.2-1B",
        architecture="llama",
        layers=16,
        hidden=2048,
        feed_forward=8192,
        heads=32,
        kv_heads=8,
        width=64,
        vocab=128256,
        theta=500000.0,
        tied=True,
        rope_factors=True,
    ),
    "qwen3-4b": Shape(
        title="Qwen3-4B",
        architecture="qwen3",
        layers=36,
        hidden=2560,
        feed_forward=9728,
        heads=32,
        kv_heads=8,
        width=128,
        vocab=151936,
        theta=1e6,
        tied=True,
        head_norms=True,
    ),
    "mistral-7b": Shape(
        title="Mistral-7B v0.3",
        architecture="llama",
        layers=32,
        hidden=4096,
        feed_forward=14336,
        heads=32,
        kv_heads=8,
        width=128,
        vocab=32768,
        theta=1e6,
    ),
    "qwen3-30b-a3b": Shape(
        title="Qwen3-30B-A3B, 12 of its 48 layers",
        architecture="qwen3moe",
        layers=12,
        hidden=2048,
        feed_forward=768,
        heads=32,
        kv_heads=4,
        width=128,
        vocab=151936,
        theta=1e6,
        head_norms=True,
        experts=128,
        used=8,
    ),
}


class Tensor(NamedTuple):
    """`shape`: [length] of a vector, [rows, columns] of a matrix, [experts, rows, columns]."""

    name: str
    shape: tuple[int, ...]
    type: str


def tensors(shape: Shape, kind: str) -> Iterator[Tensor]:
    """All tensors of a file, in order."""
    plain = "Q4_0" if kind == "Q4_0" else "Q4_K"
    hidden, queries, kept = shape.hidden, shape.heads * shape.width, shape.kv_heads * shape.width
    # Where it is the output layer as well, it has that one's type.
    yield Tensor("token_embd.weight", (shape.vocab, hidden), "Q6_K" if shape.tied else plain)
    if shape.rope_factors:
        yield Tensor("rope_freqs.weight", (shape.width // 2,), "F32")
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        better = "Q6_K" if kind == "Q4_K_M" and _gets_more_bits(layer, shape.layers) else plain
        yield Tensor(f"{block}.attn_norm.weight", (hidden,), "F32")
        yield Tensor(f"{block}.attn_q.weight", (queries, hidden), plain)
        yield Tensor(f"{block}.attn_k.weight", (kept, hidden), plain)
        yield Tensor(f"{block}.attn_v.weight", (kept, hidden), better)
        yield Tensor(f"{block}.attn_output.weight", (hidden, queries), plain)
        if shape.head_norms:
            yield Tensor(f"{block}.attn_q_norm.weight", (shape.width,), "F32")
            yield Tensor(f"{block}.attn_k_norm.weight", (shape.width,), "F32")
        yield Tensor(f"{block}.ffn_norm.weight", (hidden,), "F32")
        each = (shape.experts,) if shape.experts else ()
        ending = "_exps.weight" if shape.experts else ".weight"
        if shape.experts:
            yield Tensor(f"{block}.ffn_gate_inp.weight", (shape.experts, hidden), "F32")
        inner = shape.feed_forward
        yield Tensor(f"{block}.ffn_gate{ending}", (*each, inner, hidden), plain)
        yield Tensor(f"{block}.ffn_up{ending}", (*each, inner, hidden), plain)
        yield Tensor(f"{block}.ffn_down{ending}", (*each, hidden, inner), better)
    yield Tensor("output_norm.weight", (hidden,), "F32")
    if not shape.tied:
        yield Tensor("output.weight", (shape.vocab, hidden), "Q6_K")


def _gets_more_bits(layer: int, layers: int) -> bool:
    """Which layers' values and down projections llama.cpp's Q4_K_M keeps in 6 bits."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
