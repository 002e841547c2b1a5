"""GGUF models of several families in any size: random Q4_0 weights, Mistral's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from tiny_mistral import add_tokenizer, announce, random_values, v1_tokenizer


@dataclass(frozen=True, kw_only=True)
class Sized:
    """`norms`: further ones of each layer, by width (0: the model's). `more`: metadata."""

    architecture: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    width: int
    context: int
    experts: int = 0
    used: int = 0
    window: int = 0
    norms: tuple[tuple[str, int], ...] = ()
    tied: bool = False


def write_sized(path: Path, model: Sized) -> Path:
    """Write the file, and return its path."""
    tokenizer = v1_tokenizer()
    vocab = tokenizer.vocab_size()
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.hidden)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.width)
    writer.add_value_length(model.width)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    if model.window:
        writer.add_sliding_window(model.window)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(model.used)
    add_tokenizer(writer, tokenizer, vocab)
    tensors = _tensors(model, vocab)
    for name, shape in tensors.items():
        announce(writer, name, shape, "router" not in name and "gate_inp" not in name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for name, shape in tensors.items():
        writer.write_tensor_data(random_values(random, shape, "gate_inp" not in name))
    writer.close()
    return path


def _tensors(model: Sized, vocab: int) -> dict[str, tuple[int, ...]]:
    hidden, wide = model.hidden, model.feed_forward
    queries, keys = model.heads * model.width, model.kv_heads * model.width
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, hidden)}
    for layer in range(model.layers):
        block = f"blk.{layer}"
        for norm, width in (("attn_norm", 0), ("ffn_norm", 0), *model.norms):
            found[f"{block}.{norm}.weight"] = (width or hidden,)
        found[f"{block}.attn_q.weight"] = (queries, hidden)
        found[f"{block}.attn_k.weight"] = (keys, hidden)
        found[f"{block}.attn_v.weight"] = (keys, hidden)
        found[f"{block}.attn_output.weight"] = (hidden, queries)
        experts = (model.experts,) if model.experts else ()
        end = "_exps" if experts else ""
        if experts:
            found[f"{block}.ffn_gate_inp.weight"] = (model.experts, hidden)
        found[f"{block}.ffn_gate{end}.weight"] = (*experts, wide, hidden)
        found[f"{block}.ffn_up{end}.weight"] = (*experts, wide, hidden)
        found[f"{block}.ffn_down{end}.weight"] = (*experts, hidden, wide)
    found["output_norm.weight"] = (hidden,)
    if not model.tied:
        found["output.weight"] = (vocab, hidden)
    return found
