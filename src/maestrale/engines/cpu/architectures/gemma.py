"""Gemma 2 and 3 (text)."""

from __future__ import annotations

from dataclasses import replace

from maestrale.engines.cpu.architectures import config, gguf, rope
from maestrale.engines.cpu.architectures.family import Family, Form, always
from maestrale.engines.cpu.architectures.names import HEAD_NORMS, NORMS, folder_naming, gguf_naming
from maestrale.engines.cpu.spec import GELU_TANH, DecoderSpec
from maestrale.engines.cpu.weights.source import WeightSource

POST_NORMS = ("post_attention_norm", "post_mlp_norm")
LOCAL_THETA = 10000.0
# Layers of the 27B models, whose queries are scaled by hidden / heads and not by the heads' width.
_LARGE = {"gemma2": 46, "gemma3": 62}
_FOLDER_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def gemma2_gguf(source: WeightSource) -> DecoderSpec:
    """Of the keys below `gemma2.`: every other layer has a window, from the first on."""
    keys = source.keys
    spec = gguf.base_spec(source, windows=lambda layer, width: 0 if layer % 2 else width)
    if "attention.sliding_window" not in keys:
        spec = replace(spec, windows=tuple(0 if i % 2 else 4096 for i in range(spec.layers)))
    return replace(
        _scaled(source, spec),
        attention_soft_cap=keys.number("attn_logit_softcapping", default=50.0),
        logit_soft_cap=keys.number("final_logit_softcapping", default=30.0),
    )


def gemma3_gguf(source: WeightSource) -> DecoderSpec:
    """Of the keys below `gemma3.`: five of six layers have a window, and a theta of their own."""
    keys = source.keys
    spec = gguf.base_spec(source, windows=lambda layer, width: width if (layer + 1) % 6 else 0)
    theta = keys.number("rope.freq_base_swa", default=LOCAL_THETA)
    spec = _local(spec, theta)
    return replace(
        _scaled(source, spec), logit_soft_cap=keys.number("final_logit_softcapping", default=0.0)
    )


def gemma2_folder(source: WeightSource) -> DecoderSpec:
    """Of a config.json."""
    spec = config.base_spec(source, windows=lambda layer, width: 0 if layer % 2 else width)
    return _folder(source, spec)


def gemma3_folder(source: WeightSource) -> DecoderSpec:
    """Of a config.json, whose layers with a window have a rotary embedding of their own."""
    keys = source.keys
    every = keys.whole("sliding_window_pattern", "_sliding_window_pattern", default=6)
    spec = config.base_spec(
        source, windows=lambda layer, width: width if (layer + 1) % every else 0
    )
    full, windowed = config.ropes_of(keys, spec.head_dim, spec.context)
    spec = replace(
        spec, ropes=(full, windowed), layer_ropes=tuple(int(width > 0) for width in spec.windows)
    )
    return _folder(source, spec)


def _folder(source: WeightSource, spec: DecoderSpec) -> DecoderSpec:
    keys = source.keys
    keys.must_be("attention_bias", False)
    return replace(
        spec,
        embedding_scale=spec.hidden**0.5,
        attention_scale=keys.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        attention_soft_cap=keys.number("attn_logit_softcapping", default=0.0),
        logit_soft_cap=keys.number("final_logit_softcapping", default=0.0),
    )


def _scaled(source: WeightSource, spec: DecoderSpec) -> DecoderSpec:
    width = spec.head_dim
    if spec.layers == _LARGE[source.architecture]:
        width = spec.hidden // spec.heads
    return replace(
        spec,
        activation=GELU_TANH,
        embedding_scale=spec.hidden**0.5,
        attention_scale=width**-0.5,
        tied=source.architecture == "gemma2",
    )


def _local(spec: DecoderSpec, theta: float) -> DecoderSpec:
    """Layers with a window turn by a theta of their own."""
    local = rope.plain(spec.ropes[0].dims, theta)
    return replace(
        spec,
        ropes=(spec.ropes[0], local),
        layer_ropes=tuple(int(width > 0) for width in spec.windows),
    )


_COMMON = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
}
# Gemma 2's `hidden_act` is a leftover: `hidden_activation` is what counts.
_HARMLESS = frozenset({"hidden_act", "sliding_window_size"})

GEMMA2 = Family(
    gguf=Form(("gemma2",), gemma2_gguf, always(gguf_naming(norms=NORMS + POST_NORMS))),
    folder=Form(
        ("gemma2",),
        gemma2_folder,
        always(folder_naming(_FOLDER_NAMES, norms=NORMS + POST_NORMS, add=1.0)),
        defaults=_COMMON
        | {
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        harmless=_HARMLESS,
    ),
)

GEMMA3 = Family(
    gguf=Form(("gemma3",), gemma3_gguf, always(gguf_naming(norms=NORMS + POST_NORMS + HEAD_NORMS))),
    folder=Form(
        ("gemma3", "gemma3_text"),
        gemma3_folder,
        always(folder_naming(_FOLDER_NAMES, norms=NORMS + POST_NORMS + HEAD_NORMS, add=1.0)),
        defaults=_COMMON
        | {
            "max_position_embeddings": 131072,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": LOCAL_THETA,
        },
        harmless=_HARMLESS,
    ),
)
