"""What all families have in common in a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maestrale.engines.cpu.architectures import rope
from maestrale.engines.cpu.keys import MAX_LAYERS, Keys
from maestrale.engines.cpu.spec import GELU_TANH, SILU, DecoderSpec, Experts, Rope
from maestrale.engines.cpu.weights.source import WeightSource

EMBEDDING = "model.embed_tokens.weight"
ACTIVATIONS = {"silu": SILU, "swish": SILU, "gelu_pytorch_tanh": GELU_TANH, "gelu_tanh": GELU_TANH}
# Keys that change nothing of what a decoder computes for one text after training.
HARMLESS = frozenset({
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "auto_map",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "image_token_id", "decoder_start_token_id", "vocab_size", "initializer_range",
    "initializer_factor", "use_cache", "attention_dropout", "embd_pdrop", "resid_pdrop",
    "hidden_dropout", "attn_implementation", "pretraining_tp", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise", "cache_implementation", "tokenizer_class",
    "task_specific_params", "problem_type", "name_or_path", "id2label", "label2id", "num_labels",
    "return_dict", "output_attentions", "output_hidden_states", "torchscript", "use_return_dict",
    "chunk_size_feed_forward", "layer_norm_eps", "layer_norm_epsilon", "max_window_layers",
    "no_rope_layer_interval", "finetuning_task", "transformers.js_config", "max_length",
    "experts_implementation", "text_config", "do_sample", "temperature", "top_p", "top_k",
    "gradient_checkpointing", "pad_token", "eos_token", "bos_token", "model_max_length",
    "max_new_tokens", "use_bfloat16", "tie_encoder_decoder", "prefix", "suffix",
})  # fmt: skip
_GENERIC = ("_", "unsloth")  # beginnings of keys that change nothing
# Keys of other architectures that would change the result, and the values that don't.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_decoder": (True, False),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_bidirectional_attention": (False,),
    "is_causal": (True,),
    "clip_qkv": (),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "use_mrope": (False,),
    "n_shared_experts": (0,),
    "shared_expert_intermediate_size": (0,),
    "pruned_heads": ({},),
}


def base_spec(
    source: WeightSource,
    *,
    windows: Callable[[int, int], int] | None = None,
    embedding: str = EMBEDDING,
    partial: bool = False,
) -> DecoderSpec:
    """The decoder as far as families have it in common.

    `windows(layer, width)`: the window of a layer where the config gives a width and no
    `layer_types`; by default it is that of every layer. `partial`: the rotary embedding may turn
    a part of a head; for other families the libraries differ in what they do. Raises: ModelError.
    """
    keys = source.keys
    for name, values in _NEUTRAL.items():
        keys.must_be(name, *values)
    layers = keys.whole("num_hidden_layers", most=MAX_LAYERS)
    hidden = keys.whole("hidden_size")
    heads = keys.whole("num_attention_heads")
    head_dim = keys.whole("head_dim", default=max(hidden // heads, 1))
    context = keys.whole("max_position_embeddings")
    activation = keys.text("hidden_act", "hidden_activation", default="silu")
    if activation not in ACTIVATIONS:
        raise keys.wrong("hidden_act", f"is {activation!r}; served are {', '.join(ACTIVATIONS)}")
    per_layer = ropes_of(keys, head_dim, context)
    if not partial and any(each.dims != head_dim for each in per_layer):
        raise keys.wrong("partial_rotary_factor", f"isn't 1, as is needed of {source.architecture}")
    width = keys.whole("sliding_window", default=0, least=0)
    if not keys.flag("use_sliding_window", default=True):
        width = 0
    return DecoderSpec(
        architecture=source.architecture,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=keys.whole("num_key_value_heads", default=heads),
        head_dim=head_dim,
        mlp=keys.whole("intermediate_size", default=0, least=0),
        vocab=source.rows_of(embedding),
        context=context,
        norm_epsilon=keys.number("rms_norm_eps"),
        attention_scale=head_dim**-0.5,
        windows=_windows(keys, layers, width, windows),
        ropes=(per_layer[0],),
        layer_ropes=(0,) * layers,
        original_context=_original(keys, rope_keys(keys), context) if per_layer[0].long else 0,
        activation=ACTIVATIONS[activation],
        experts=_experts(keys),
        tied=keys.flag("tie_word_embeddings", default=False),
    )


def ropes_of(keys: Keys, head_dim: int, context: int) -> tuple[Rope, Rope]:
    """The rotary embedding of layers that see everything, and that of those with a window."""
    given = rope_keys(keys) or Keys(keys.where, {})
    theta = keys.number("rope_theta", default=10000.0)
    local = keys.number("rope_local_base_freq", default=0.0)
    partial = keys.number("partial_rotary_factor", default=1.0)
    full = given.below("full_attention")
    sliding = given.below("sliding_attention")
    everywhere = windowed = _rope(keys, full or given, head_dim, theta, partial, context)
    if sliding is not None:
        windowed = _rope(keys, sliding, head_dim, local or theta, partial, context)
    elif local:
        windowed = rope.plain(_dims(keys, head_dim, partial), local)
    for each in (full, sliding, given):
        if each is not None:
            each.refuse_unread(_ROPE_HARMLESS)
    return everywhere, windowed


def rope_keys(keys: Keys) -> Keys | None:
    """What a config says of its rotary embedding, under the newer name or the older.

    Raises: ModelError where there are both, and they differ.
    """
    newer, older = keys.below("rope_parameters"), keys.below("rope_scaling")
    if newer is None or older is None:
        return newer or older
    for name in older.unread():
        if name in newer and newer.find(name) != older.find(name):
            raise keys.wrong("rope_scaling", f"and rope_parameters differ in {name!r}")
    return newer


_ROPE_HARMLESS = frozenset({
    "max_position_embeddings", "finetuned", "llama_4_scaling_beta", "truncate", "mscale", "type",
    "mscale_all_dim", "beta_fast", "beta_slow", "attention_factor",
    "original_max_position_embeddings", "rope_type", "rope_theta", "partial_rotary_factor",
    "factor", "short_mscale", "long_mscale",
})  # fmt: skip


def _rope(
    keys: Keys, given: Keys, head_dim: int, theta: float, partial: float, context: int
) -> Rope:
    kind = given.text("rope_type", "type", default="default").lower()
    theta = given.number("rope_theta", default=theta)
    dims = _dims(keys, head_dim, given.number("partial_rotary_factor", default=partial))
    factor = given.number("factor", default=0.0)
    if theta <= 1 or factor < 0:
        raise keys.wrong("rope_theta" if theta <= 1 else "rope_scaling", "is too small")
    original = _original(keys, given, context)
    # Up to the model's context, which is all that is served, dynamic scaling changes nothing.
    if kind in ("default", "dynamic"):
        return rope.plain(dims, theta)
    if kind == "yarn" and "long_factor" in given:  # so early files of Phi 3 call it
        kind = "longrope"
    if kind == "linear":
        return rope.plain(dims, theta, factor or 1.0)
    if kind == "llama3":
        low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
        if not 0 < low < high:
            raise given.wrong("low_freq_factor", f"is {low}, and high_freq_factor {high}")
        return rope.llama3(dims, theta, factor or 1.0, low, high, original)
    if kind == "yarn":
        yarn = rope.Yarn(
            factor=factor or context / original,
            original_context=original,
            beta_fast=given.number("beta_fast", default=0.0) or 32.0,
            beta_slow=given.number("beta_slow", default=0.0) or 1.0,
            mscale=given.number("mscale", default=0.0),
            mscale_all=given.number("mscale_all_dim", default=0.0),
            attention_factor=given.number("attention_factor", "attn_factor", default=0.0),
            truncate=given.flag("truncate", default=True),
        )
        return rope.yarn(dims, theta, yarn)
    if kind in ("longrope", "su"):
        short = _table(given, "short_factor", dims // 2)
        long = _table(given, "long_factor", dims // 2)
        scale = given.number("attention_factor", default=0.0)
        grown = factor or context / original
        return rope.longrope(
            dims, theta, short, long, scale or rope.longrope_scale(grown, original)
        )
    raise given.wrong("rope_type", f"is {kind!r}, which isn't served here")


def _dims(keys: Keys, head_dim: int, partial: float) -> int:
    dims = int(head_dim * partial)
    if not 0 < dims <= head_dim or dims % 2:
        raise keys.wrong("partial_rotary_factor", f"makes {dims} of {head_dim} elements")
    return dims


def _table(given: Keys, name: str, count: int) -> list[float]:
    values = given.find(name)
    known = isinstance(values, list) and len(values) == count
    if not known or not all(isinstance(each, int | float) and each > 0 for each in values):
        raise given.wrong(name, f"is no array of {count} factors")
    return [float(each) for each in values]


def _original(keys: Keys, given: Keys | None, context: int) -> int:
    """The context that the rotary embedding was made for; a config's own key goes first."""
    name = "original_max_position_embeddings"
    inner = context if given is None else given.whole(name, default=context)
    return keys.whole(name, default=inner)


def _experts(keys: Keys) -> Experts | None:
    count = keys.whole("num_local_experts", "num_experts", default=0, least=0)
    used = keys.whole("num_experts_per_tok", "experts_per_token", default=0, least=0)
    width = keys.whole("moe_intermediate_size", default=0, least=0)
    renormalise = keys.flag("norm_topk_prob", default=True)
    if count == 0:
        return None
    if not 0 < used <= count:
        raise keys.wrong("num_experts_per_tok", f"is {used} of {count} experts")
    width = width or keys.whole("intermediate_size")
    return Experts(count, used, width, renormalise=renormalise)


def _windows(
    keys: Keys, layers: int, width: int, of_layer: Callable[[int, int], int] | None
) -> tuple[int, ...]:
    kinds = keys.entries("layer_types", str, layers)
    if kinds is None:
        return tuple(width if of_layer is None else of_layer(i, width) for i in range(layers))
    odd = next((kind for kind in kinds if kind not in _LAYER_TYPES), None)
    if odd is not None:
        raise keys.wrong("layer_types", f"has {odd!r}; served are {' and '.join(_LAYER_TYPES)}")
    return tuple(width if kind == "sliding_attention" else 0 for kind in kinds)


_LAYER_TYPES = ("full_attention", "sliding_attention")


def harmless(keys: Keys) -> frozenset[str]:
    """The keys of this config that change nothing, whatever they are."""
    return HARMLESS | {name for name in keys.unread() if name.startswith(_GENERIC)}
