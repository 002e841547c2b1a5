"""What of a decoder's shape and its weights' type decides its size in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maestrale.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer with gated feed-forward layers, as all known models here are.

    `sliding_layers` of the layers attend to the last `sliding_window` tokens only. `tied`: the
    output projection is the embedding. `latent`: elements of one token in one layer's cache where
    they are compressed (DeepSeek's MLA), instead of keys and values for each head.
    `stated_parameters` replaces the count from the shape where the shape doesn't tell all.
    """

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    tied: bool = False
    experts: int = 1
    qkv_bias: bool = False
    qk_norm: bool = False
    norms: int = 2  # vectors of `hidden` in a layer
    sliding_window: int | None = None
    sliding_layers: int = 0
    latent: int | None = None
    stated_parameters: int | None = None

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        if self.stated_parameters is not None:
            return self.stated_parameters
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * query + 2 * kv)
        if self.qkv_bias:
            attention += query + 2 * kv
        if self.qk_norm:
            attention += 2 * self.head_dim
        feed_forward = 3 * self.hidden * self.feed_forward * self.experts
        router = self.hidden * self.experts if self.experts > 1 else 0
        layer = attention + feed_forward + router + self.norms * self.hidden
        return self.layers * layer + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def embedding(self) -> int:
        """Weights of the embedding."""
        return self.vocab * self.hidden

    @property
    def kv_elements(self) -> int:
        """Elements that one token adds to the cache: keys and values, in all layers."""
        return self.layers * self.kv_elements_of_layer

    @property
    def kv_elements_of_layer(self) -> int:
        return self.latent if self.latent is not None else 2 * self.kv_heads * self.head_dim


def from_config(config: Mapping[str, Any], parameters: int | None = None) -> Architecture:
    """The architecture that a Hugging Face config.json describes.

    `parameters`: the count of weights where it is known from the weights themselves.

    Raises: ModelError when the config lacks what is needed.
    """
    nested = config.get("text_config")
    text = nested if isinstance(nested, Mapping) else config
    layers = _whole(text, "num_hidden_layers", "n_layer", "n_layers")
    heads = _whole(text, "num_attention_heads", "n_head", "n_heads")
    hidden = _whole(text, "hidden_size", "n_embd", "dim")
    window, sliding = _sliding(text, layers)
    experts = _optional(text, "num_local_experts", "num_experts", "n_routed_experts") or 1
    inner = _optional(text, "moe_intermediate_size") if experts > 1 else None
    rank = _optional(text, "kv_lora_rank")
    return Architecture(
        layers=layers,
        hidden=hidden,
        feed_forward=inner or _whole(text, "intermediate_size", "n_inner", "hidden_dim"),
        heads=heads,
        kv_heads=_optional(text, "num_key_value_heads", "n_kv_heads") or heads,
        head_dim=_optional(text, "head_dim") or hidden // heads,
        vocab=_whole(text, "vocab_size"),
        context=_whole(text, "max_position_embeddings", "n_positions", "max_seq_len"),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        experts=experts,
        qkv_bias=text.get("model_type") == "qwen2" or text.get("attention_bias") is True,
        qk_norm=text.get("model_type") in ("qwen3", "qwen3_moe"),
        sliding_window=window,
        sliding_layers=sliding,
        latent=rank + (_optional(text, "qk_rope_head_dim") or 0) if rank else None,
        stated_parameters=parameters,
    )


def gguf_shape(metadata: Mapping[str, Any]) -> Architecture:
    """The architecture that a GGUF file's metadata describes. Raises: ModelError."""
    kind = metadata.get("general.architecture")

    def value(key: str) -> Any:
        return metadata.get(f"{kind}.{key}")

    vocabulary = metadata.get("tokenizer.ggml.tokens")
    counted = len(vocabulary) if isinstance(vocabulary, list) else None
    return from_config(
        {
            "model_type": kind,
            "num_hidden_layers": value("block_count"),
            "hidden_size": value("embedding_length"),
            "intermediate_size": value("feed_forward_length"),
            "num_attention_heads": value("attention.head_count"),
            "num_key_value_heads": value("attention.head_count_kv"),
            "head_dim": value("attention.key_length"),
            "vocab_size": value("vocab_size") or counted,
            "max_position_embeddings": value("context_length"),
            "num_local_experts": value("expert_count"),
        }
    )


def _sliding(text: Mapping[str, Any], layers: int) -> tuple[int | None, int]:
    window = _optional(text, "sliding_window")
    if window is None or text.get("use_sliding_window") is False:
        return None, 0
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        count = sum(kind == "sliding_attention" for kind in kinds)
        return (window, count) if count else (None, 0)
    if text.get("model_type") == "gemma2":
        return window, math.ceil(layers / 2)
    pattern = _optional(text, "sliding_window_pattern")
    if pattern:  # one of so many layers attends to everything
        return window, layers - layers // pattern
    return window, layers


def _whole(text: Mapping[str, Any], *names: str) -> int:
    value = _optional(text, *names)
    if value is None:
        raise ModelError(
            f"The model's config.json lacks {names[0]!r}. Is it a language model's, in Hugging "
            f"Face's layout? It says: model_type {text.get('model_type')!r}, architectures "
            f"{text.get('architectures')!r}."
        )
    return value


def _optional(text: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = text.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


@dataclass(frozen=True)
class WeightType:
    """`linear`, `other`: bytes for each weight of the layers, and of embeddings and norms."""

    name: str
    linear: float
    other: float
    formula: str

    def bytes_of(self, shape: Architecture) -> int:
        outside = shape.embedding * (1 if shape.tied else 2)
        outside += shape.hidden * (shape.norms * shape.layers + 1)
        return round((shape.parameters - outside) * self.linear + outside * self.other)


_BESIDE = "embedding, output projection and norms stay at 2 bytes"

# For vLLM. AWQ and GPTQ keep for each group of 128 weights a scale (16 bits) and a zero (4 bits).
VLLM_TYPES = {
    "bf16": WeightType("bf16", 2, 2, "parameters x 2 bytes"),
    "fp8": WeightType("fp8", 1, 2, f"1 byte for each weight of the layers; {_BESIDE}"),
    "int8": WeightType("int8", 1, 2, f"1 byte for each weight of the layers; {_BESIDE}"),
    "int4": WeightType(
        "int4",
        (4 + 20 / 128) / 8,
        2,
        f"4 bits and 20 bits for each 128 weights of the layers (AWQ, GPTQ); {_BESIDE}",
    ),
}
# For the CPU engine, as it packs them: a 16-bit scale for each 32 (GGUF's Q4_0, Q8_0).
CPU_TYPES = {
    "bf16": WeightType("bf16", 34 / 32, 34 / 32, "rounded to 8 bits, a scale for each 32 weights"),
    "int8": WeightType("int8", 34 / 32, 34 / 32, "8 bits and a 16-bit scale for each 32 weights"),
    "int4": WeightType("int4", 18 / 32, 18 / 32, "4 bits and a 16-bit scale for each 32 weights"),
}
