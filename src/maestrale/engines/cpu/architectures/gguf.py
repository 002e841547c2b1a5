"""What all families have in common in a GGUF file's metadata: keys below the architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from maestrale.engines.cpu.architectures import rope
from maestrale.engines.cpu.architectures.classifier import RANK
from maestrale.engines.cpu.keys import MAX_LAYERS, Keys
from maestrale.engines.cpu.spec import DecoderSpec, Experts, Rope
from maestrale.engines.cpu.weights.source import WeightSource

EMBEDDING = "token_embd.weight"
SOFTMAX_GATING = 1
# Keys that change nothing of what a decoder computes.
HARMLESS = frozenset({
    "vocab_size", "tensor_data_layout", "rope.scaling.finetuned",
    "attention.layer_norm_epsilon",  # of LayerNorms, which no family here has
    "expert_shared_count",  # what counts is the shared expert's width
})  # fmt: skip
# Keys of other architectures that would change the result, and the values that don't.
_NEUTRAL = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "expert_gating_func": (0, SOFTMAX_GATING),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_feed_forward_length": (0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0, 1, 3, RANK),  # models/pooling.py
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "use_parallel_residual": (False,),
}


def base_spec(
    source: WeightSource, *, windows: Callable[[int, int], int] | None = None, truncate: bool = True
) -> DecoderSpec:
    """The decoder as far as families have it in common.

    `windows(layer, width)`: the window of a layer where the file gives a width; by default it is
    that of every layer. `truncate`: YaRN's. Raises: ModelError for what is missing or can't be.
    """
    keys = source.keys
    for name, values in _NEUTRAL.items():
        keys.must_be(name, *values)
    layers = keys.whole("block_count", most=MAX_LAYERS)
    hidden = keys.whole("embedding_length")
    heads = keys.whole("attention.head_count")
    head_dim = keys.whole("attention.key_length", default=max(hidden // heads, 1))
    if keys.whole("attention.value_length", default=head_dim) != head_dim:
        raise keys.wrong("attention.value_length", f"isn't the keys' {head_dim}, as is needed here")
    experts = _experts(keys)
    context = keys.whole("context_length")
    embedding, original = _rope(source, head_dim, context, truncate=truncate)
    return DecoderSpec(
        architecture=source.architecture,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=keys.whole("attention.head_count_kv", default=heads),
        head_dim=head_dim,
        mlp=keys.whole("feed_forward_length", default=0, least=0),
        vocab=source.rows_of(EMBEDDING),
        context=context,
        norm_epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        attention_scale=keys.number("attention.scale", default=0.0) or head_dim**-0.5,
        windows=_windows(keys, layers, windows),
        ropes=(embedding,),
        layer_ropes=(0,) * layers,
        original_context=original if embedding.long else 0,
        experts=experts,
    )


def _rope(source: WeightSource, head_dim: int, context: int, *, truncate: bool) -> tuple[Rope, int]:
    """The rotary embedding that the file asks for, and the context it was made for."""
    keys = source.keys
    dims = keys.whole("rope.dimension_count", default=head_dim)
    if dims > head_dim or dims % 2:
        raise keys.wrong("rope.dimension_count", f"is {dims} in heads of {head_dim}")
    theta = keys.number("rope.freq_base", default=10000.0)
    kind = keys.text("rope.scaling.type", default="none")
    factor = keys.number("rope.scaling.factor", "rope.scale_linear", default=0.0) or 1.0
    scale = keys.number("rope.scaling.attn_factor", default=1.0)
    original = keys.whole("rope.scaling.original_context_length", default=context)
    keys.must_be("rope.scaling.alpha", 0.0, 1.0)
    if theta <= 1 or factor <= 0:
        raise keys.wrong("rope.freq_base" if theta <= 1 else "rope.scaling.factor", "is too small")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise keys.wrong("rope.scaling.type", f"is {kind!r}, which isn't known here")
    longrope = source.has("rope_factors_long.weight")
    if longrope + source.has("rope_freqs.weight") + (kind == "yarn") > 1:
        raise keys.wrong("rope.scaling.type", f"is {kind!r}, which the file's own factors rule out")
    if kind == "longrope" and not longrope:
        raise keys.wrong("rope.scaling.type", "is longrope, but the file has no rope_factors_long")
    if kind == "yarn":
        found = rope.yarn(dims, theta, _yarn(keys, factor, original, truncate))
        return replace(found, scale=found.scale * scale), original
    keys.must_be("rope.scaling.yarn_attn_factor", 0.0, 1.0)
    keys.ignore(*_YARN_ONLY)
    if longrope:
        short, long = (
            source.values(f"rope_factors_{name}.weight", dims // 2).tolist()
            for name in ("short", "long")
        )
        if "rope.scaling.attn_factor" not in keys:
            scale = rope.longrope_scale(context / original, original)
        return rope.longrope(dims, theta, short, long, scale), original
    if source.has("rope_freqs.weight"):
        factors = source.values("rope_freqs.weight", dims // 2).tolist()
        found = rope.divided(dims, theta, [factor * each for each in factors])
    else:
        found = rope.plain(dims, theta, factor)
    return replace(found, scale=scale), original


_YARN_ONLY = tuple(
    f"rope.scaling.yarn_{name}" for name in ("beta_fast", "beta_slow", "log_multiplier")
)


def _yarn(keys: Keys, factor: float, original: int, truncate: bool) -> rope.Yarn:
    return rope.Yarn(
        factor=factor,
        original_context=original,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", default=32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", default=1.0),
        mscale=1.0,
        mscale_all=keys.number("rope.scaling.yarn_log_multiplier", default=0.0),
        attention_factor=keys.number("rope.scaling.yarn_attn_factor", default=0.0),
        truncate=truncate,
    )


def _experts(keys: Keys) -> Experts | None:
    count = keys.whole("expert_count", default=0, least=0)
    used = keys.whole("expert_used_count", default=0, least=0)
    width = keys.whole("expert_feed_forward_length", default=0, least=0)
    scale = keys.number("expert_weights_scale", default=0.0) or 1.0
    renormalise = keys.flag("expert_weights_norm", default=True)
    if count == 0:
        return None
    if not 0 < used <= count:
        raise keys.wrong("expert_used_count", f"is {used} of {count} experts")
    width = width or keys.whole("feed_forward_length")
    return Experts(count, used, width, renormalise=renormalise, scale=scale)


def _windows(
    keys: Keys, layers: int, of_layer: Callable[[int, int], int] | None
) -> tuple[int, ...]:
    width = keys.whole("attention.sliding_window", default=0, least=0)
    pattern = keys.find("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        flags = keys.entries("attention.sliding_window_pattern", bool, layers) or []
        return tuple(width if flag else 0 for flag in flags)
    if pattern is not None:  # one of so many layers sees everything, the last of them
        every = keys.whole("attention.sliding_window_pattern", least=0)
        return tuple(width if every == 0 or i % every < every - 1 else 0 for i in range(layers))
    return tuple(width if of_layer is None else of_layer(i, width) for i in range(layers))
