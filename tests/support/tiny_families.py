"""The tiny models: one or more for each family, each with what makes it differ switched on."""

from __future__ import annotations

from typing import Any

from tiny_models import VOCAB, TinyModel, dense

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS, _WIDTH = 4, 64  # of tiny mixtures


def _config(kind: str, architecture: str, **more: Any) -> dict[str, Any]:
    return {**_BASE, "model_type": kind, "architectures": [architecture], **more}


def _plain(name: str, kind: str, architecture: str, **more: Any) -> TinyModel:
    config = _config(kind, architecture, **more)
    return TinyModel(name, architecture, config, dense(config))


def _mixture(shapes: dict[str, Any], hidden: int, names: str, router: str) -> dict[str, Any]:
    """The MLPs of dense shapes replaced by experts, each in tensors of its own."""
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        if ".mlp." not in name:
            found[name] = shape
        elif "gate_proj" in name:
            layer = name.split("mlp.")[0]
            found[f"{layer}{router}.weight"] = (_EXPERTS, hidden)
            for expert in range(_EXPERTS):
                for part, size in (("gate", 0), ("up", 0), ("down", 1)):
                    which = {"gate": "w1", "up": "w3", "down": "w2"}[part]
                    tensor = names.format(expert, part=f"{part}_proj", which=which)
                    sizes = (_WIDTH, hidden) if not size else (hidden, _WIDTH)
                    found[f"{layer}{tensor}.weight"] = sizes
    return found


def _mixtral() -> TinyModel:
    config = _config(
        "mixtral",
        "MixtralForCausalLM",
        intermediate_size=_WIDTH,
        num_local_experts=_EXPERTS,
        num_experts_per_tok=2,
        sliding_window=None,
    )
    names, router = "block_sparse_moe.experts.{}.{which}", "block_sparse_moe.gate"
    shapes = _mixture(dense(config), 64, names, router)
    return TinyModel("mixtral", "MixtralForCausalLM", config, shapes)


def _qwen(name: str, kind: str, architecture: str, *, norms: bool, **more: Any) -> TinyModel:
    extra: dict[str, Any] = {"head_dim": 32} if norms else {}
    config = _config(kind, architecture, use_sliding_window=False, **extra, **more)
    shapes = dense(config, qkv_bias=not norms, head_norms=norms)
    if kind == "qwen3_moe":
        shapes = _mixture(shapes, 64, "mlp.experts.{}.{part}", "mlp.gate")
    return TinyModel(name, architecture, config, shapes)


def _gemma(name: str, kind: str, architecture: str, *, norms: bool, **more: Any) -> TinyModel:
    given = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 32, "sliding_window": 12}
    config = _config(
        kind, architecture, tie_word_embeddings=True, query_pre_attn_scalar=32, **given, **more
    )
    del config["hidden_act"]
    shapes = dense(config, head_norms=norms)
    for layer in range(config["num_hidden_layers"]):
        for norm in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (64,)
    return TinyModel(name, architecture, config, shapes, norm_centre=0.0)


def _phi(name: str, tokens: int = 40, **more: Any) -> TinyModel:
    config = _config("phi3", "Phi3ForCausalLM", **more)
    head = 64 // config["num_attention_heads"]
    queries, keys = 64, config["num_key_value_heads"] * head
    shapes: dict[str, Any] = {}
    for tensor, shape in dense(config).items():
        if "q_proj" in tensor:
            shapes[tensor.replace("q_proj", "qkv_proj")] = (queries + 2 * keys, 64)
        elif "gate_proj" in tensor:
            shapes[tensor.replace("gate_proj", "gate_up_proj")] = (2 * 96, 64)
        elif not any(part in tensor for part in ("k_proj", "v_proj", ".up_proj")):
            shapes[tensor] = shape
    return TinyModel(name, "Phi3ForCausalLM", config, shapes, tokens)


def _olmo(name: str, kind: str, architecture: str, **more: Any) -> TinyModel:
    config = _config(kind, architecture, **more)
    shapes = {
        tensor: shape for tensor, shape in dense(config).items() if "input_layernorm" not in tensor
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes[f"{prefix}post_feedforward_layernorm.weight"] = (64,)
        shapes[f"{prefix}self_attn.q_norm.weight"] = (64,)
        shapes[f"{prefix}self_attn.k_norm.weight"] = (config["num_key_value_heads"] * 16,)
    return TinyModel(name, architecture, config, shapes)


def _gpt_oss(name: str, *, mxfp4: bool) -> TinyModel:
    yarn = {"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0}
    yarn |= {"truncate": False, "original_max_position_embeddings": 32}
    config = _config(
        "gpt_oss",
        "GptOssForCausalLM",
        head_dim=32,
        num_hidden_layers=4,
        intermediate_size=_WIDTH,
        num_local_experts=_EXPERTS,
        num_experts_per_tok=2,
        sliding_window=12,
        attention_bias=True,
        rope_theta=150000.0,
        rope_scaling=yarn,
        layer_types=["sliding_attention", "full_attention"] * 2,
        swiglu_limit=7.0,
    )
    shapes: dict[str, Any] = {}
    for tensor, shape in dense(config, qkv_bias=True).items():
        if ".mlp." not in tensor:
            shapes[tensor] = shape
        if tensor.endswith("o_proj.weight"):
            layer = tensor.split("self_attn.")[0]
            experts = f"{layer}mlp.experts."
            shapes[f"{layer}self_attn.o_proj.bias"] = (64,)
            shapes[f"{layer}self_attn.sinks"] = (4,)
            shapes[f"{layer}mlp.router.weight"] = (_EXPERTS, 64)
            shapes[f"{layer}mlp.router.bias"] = (_EXPERTS,)
            shapes[f"{experts}gate_up_proj"] = (_EXPERTS, 64, 2 * _WIDTH)
            shapes[f"{experts}gate_up_proj_bias"] = (_EXPERTS, 2 * _WIDTH)
            shapes[f"{experts}down_proj"] = (_EXPERTS, _WIDTH, 64)
            shapes[f"{experts}down_proj_bias"] = (_EXPERTS, 64)
    turned = ("experts.gate_up_proj", "experts.down_proj")
    return TinyModel(
        name, "GptOssForCausalLM", config, shapes, transposed=turned, mxfp4=turned if mxfp4 else ()
    )


_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 64}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_MINISTRAL = {
    "rope_type": "yarn", "type": "yarn", "rope_theta": 1000000.0, "factor": 16.0,
    "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_SHORT = [1.0 + i / 8 for i in range(8)]
_LONG = [1.0 + i for i in range(8)]
_LONGROPE = {"type": "longrope", "short_factor": _SHORT, "long_factor": _LONG}
_LONG_CONTEXT = {"max_position_embeddings": 128, "original_max_position_embeddings": 32}

TINY = (
    _plain("llama2", "llama", "LlamaForCausalLM", num_key_value_heads=4),
    _plain(
        "llama3", "llama", "LlamaForCausalLM", head_dim=32, tie_word_embeddings=True,
        rope_scaling=_LLAMA3, rope_theta=500000.0,
    ),
    _plain("mistral", "mistral", "MistralForCausalLM", sliding_window=12),
    _plain("nemo", "mistral", "MistralForCausalLM", sliding_window=None, head_dim=32),
    _plain(
        "ministral3", "ministral3", "Ministral3ForCausalLM", head_dim=32,
        rope_parameters=_MINISTRAL,
    ),
    _mixtral(),
    _qwen("qwen2", "qwen2", "Qwen2ForCausalLM", norms=False, rope_scaling=_YARN),
    _qwen("qwen3", "qwen3", "Qwen3ForCausalLM", norms=True, tie_word_embeddings=True),
    _qwen(
        "qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM", norms=True, num_experts=_EXPERTS,
        num_experts_per_tok=2, moe_intermediate_size=_WIDTH, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[],
    ),
    _gemma(
        "gemma2", "gemma2", "Gemma2ForCausalLM", norms=False, attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    _gemma(
        "gemma3", "gemma3_text", "Gemma3ForCausalLM", norms=True, num_hidden_layers=7,
        rope_local_base_freq=10000.0, rope_theta=1000000.0, intermediate_size=64,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    _phi("phi3", sliding_window=None, rope_scaling=None),
    _phi("phi4mini", partial_rotary_factor=0.5, sliding_window=None,
         rope_scaling={"type": "longrope", "short_factor": _SHORT[:4], "long_factor": _LONG[:4]},
         **_LONG_CONTEXT),
    _phi("phi3short", 20, rope_scaling=_LONGROPE, sliding_window=None, **_LONG_CONTEXT),
    _plain(
        "smollm3", "smollm3", "SmolLM3ForCausalLM", num_hidden_layers=4, intermediate_size=64,
        no_rope_layers=[1, 1, 1, 0], use_sliding_window=False, tie_word_embeddings=True,
    ),
    _plain(
        "granite", "granite", "GraniteForCausalLM", attention_multiplier=0.3,
        embedding_multiplier=1.5, residual_multiplier=0.7, logits_scaling=2.0,
    ),
    _olmo("olmo2", "olmo2", "Olmo2ForCausalLM"),
    _olmo(
        "olmo3", "olmo3", "Olmo3ForCausalLM", num_hidden_layers=4, intermediate_size=64,
        sliding_window=12, rope_scaling=_YARN | {"attention_factor": 1.1}, rope_theta=500000.0,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    ),
    _gpt_oss("gptoss", mxfp4=True),
    _gpt_oss("gptoss16", mxfp4=False),
)  # fmt: skip
BY_NAME = {model.name: model for model in TINY}
