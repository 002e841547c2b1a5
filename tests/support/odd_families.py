"""Tiny models with settings that the golden files' models don't have: other sizes, what a
config.json leaves out, nulls, windows, scales and kinds of rotary embeddings.

`tests/golden/make_odd` lets transformers compute their logits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tiny_families import BY_NAME as TINY
from tiny_families import gemma, mixtral, olmo, phi, plain, qwen
from tiny_models import TinyModel

ROWS = (19, 39)  # of the 40 tokens' logits, those that are kept
_HALF = 8  # elements of half a head of 16


def _llama(name: str, **more: Any) -> TinyModel:
    return plain(name, "llama", "LlamaForCausalLM", **more)


def _without(model: TinyModel, *keys: str) -> TinyModel:
    """The same shapes, and a config that leaves out keys."""
    config = {key: value for key, value in model.config.items() if key not in keys}
    return replace(model, config=config)


def _with_biases(model: TinyModel, *parts: str) -> TinyModel:
    """Biases beside the matrices of these names."""
    shapes = dict(model.shapes)
    for name, shape in model.shapes.items():
        if name.endswith(tuple(f"{part}_proj.weight" for part in parts)):
            shapes[name.replace(".weight", ".bias")] = shape[:1]
    return replace(model, shapes=shapes)


def _yarn(**more: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 6.0, "original_max_position_embeddings": 40, **more}


_LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0 + i / 8 for i in range(_HALF)],
    "long_factor": [1.0 + i for i in range(_HALF)],
}
_PHI_FACTORS = {key: _LONGROPE[key] for key in ("short_factor", "long_factor")}
_QKVO, _MLP = ("q", "k", "v", "o"), ("gate", "up", "down")
_BIASED = {"attention_bias": True, "mlp_bias": True}
_MOE = {"num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 64}

ODD = (
    _llama("sizes", hidden_size=100, num_attention_heads=5, num_key_value_heads=5,
           intermediate_size=70),
    _llama("one key for eight", hidden_size=192, num_attention_heads=8, num_key_value_heads=1,
           head_dim=40, tie_word_embeddings=True),
    _with_biases(_llama("biases everywhere", **_BIASED), *_QKVO, *_MLP),
    _llama("linear", rope_scaling={"type": "linear", "factor": 3.5}),
    _llama("dynamic", rope_scaling={"type": "dynamic", "factor": 2.0}),
    _llama("yarn with mscale", rope_scaling=_yarn(mscale=0.7, mscale_all_dim=0.9)),
    _llama("yarn with one mscale", rope_scaling=_yarn(mscale=0.7)),
    _llama("yarn untruncated", rope_scaling=_yarn(truncate=False, beta_fast=8.0)),
    _llama("longrope in rope_scaling alone", rope_scaling=_LONGROPE),
    _llama("GELU", hidden_act="gelu_pytorch_tanh"),
    plain("window below the prompt", "mistral", "MistralForCausalLM", sliding_window=5,
          head_dim=24, num_key_value_heads=1),
    _without(
        plain("Ministral without a width", "ministral3", "Ministral3ForCausalLM", head_dim=128,
              rope_parameters={"rope_type": "default", "rope_theta": 5000.0,
                               "original_max_position_embeddings": 10,
                               "llama_4_scaling_beta": 0.2}),
        "head_dim", "rope_theta",
    ),
    _without(mixtral("one of seven experts", num_local_experts=7, num_experts_per_tok=1,
                     sliding_window=9), "rope_theta"),
    qwen("window from a layer on", "qwen2", "Qwen2ForCausalLM", norms=False, num_hidden_layers=3,
         use_sliding_window=True, sliding_window=7, max_window_layers=1),
    _without(
        qwen("experts not renormalised", "qwen3_moe", "Qwen3MoeForCausalLM", norms=True,
             head_dim=16, use_sliding_window=True, sliding_window=6, max_window_layers=1, **_MOE),
        "head_dim",
    ),
    gemma("no caps", "gemma2", "Gemma2ForCausalLM", norms=False, attn_logit_softcapping=None,
          final_logit_softcapping=None, query_pre_attn_scalar=50),
    gemma("another pattern", "gemma3_text", "Gemma3ForCausalLM", norms=True, num_hidden_layers=4,
          sliding_window_pattern=2, rope_local_base_freq=777.0, final_logit_softcapping=2.0),
    phi("longrope under an old name", sliding_window=6, max_position_embeddings=256,
        original_max_position_embeddings=32, rope_scaling={"type": "yarn", **_PHI_FACTORS}),
    plain("a window without rope", "smollm3", "SmolLM3ForCausalLM", num_hidden_layers=4,
          use_sliding_window=True, sliding_window=6, no_rope_layers=[1, 0, 1, 0]),
    plain("scales", "granite", "GraniteForCausalLM", attention_multiplier=0.9,
          embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=13.0),
    _with_biases(olmo("OLMo with biases", "olmo2", "Olmo2ForCausalLM", attention_bias=True,
                      num_key_value_heads=1), *_QKVO),
    _without(olmo("OLMo 3 without a theta", "olmo3", "Olmo3ForCausalLM", sliding_window=5,
                  num_hidden_layers=4), "rope_theta"),
    replace(_without(TINY["gptoss16"], "rope_scaling"), name="gpt-oss without rope_scaling"),
)  # fmt: skip
BY_NAME = {model.name: model for model in ODD}
