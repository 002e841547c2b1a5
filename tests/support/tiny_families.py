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


def configured(kind: str, architecture: str, **more: Any) -> dict[str, Any]:
    """A config.json of small sizes."""
    return {**_BASE, "model_type": kind, "architectures": [architecture], **more}


def plain(name: str, kind: str, architecture: str, **more: Any) -> TinyModel:
    """A llama-like model."""
    config = configured(kind, architecture, **more)
    return TinyModel(name, architecture, config, dense(config))


def mixture(
    shapes: dict[str, Any], hidden: int, names: str, router: str, experts: int = _EXPERTS
) -> dict[str, Any]:
    """The MLPs of dense shapes replaced by experts, each in tensors of its own."""
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        if ".mlp." not in name:
            found[name] = shape
        elif "gate_proj" in name:
            layer = name.split("mlp.")[0]
            found[f"{layer}{router}.weight"] = (experts, hidden)
            for expert in range(experts):
                for part, size in (("gate", 0), ("up", 0), ("down", 1)):
                    which = {"gate": "w1", "up": "w3", "down": "w2"}[part]
                    tensor = names.format(expert, part=f"{part}_proj", which=which)
                    sizes = (_WIDTH, hidden) if not size else (hidden, _WIDTH)
                    found[f"{layer}{tensor}.weight"] = sizes
    return found


def mixtral(name: str, **more: Any) -> TinyModel:
    """A Mixtral."""
    given: dict[str, Any] = {
        "num_local_experts": _EXPERTS,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    }
    given |= {"intermediate_size": _WIDTH, **more}
    config = configured("mixtral", "MixtralForCausalLM", **given)
    names, router = "block_sparse_moe.experts.{}.{which}", "block_sparse_moe.gate"
    shapes = mixture(dense(config), 64, names, router, given["num_local_experts"])
    return TinyModel(name, "MixtralForCausalLM", config, shapes)


def qwen(name: str, kind: str, architecture: str, *, norms: bool, **more: Any) -> TinyModel:
    """A Qwen; `norms`: 3's, of heads."""
    extra: dict[str, Any] = {"head_dim": 32} if norms else {}
    config = configured(kind, architecture, **{"use_sliding_window": False, **extra, **more})
    shapes = dense(config, qkv_bias=not norms, head_norms=norms)
    if kind == "qwen3_moe":
        shapes = mixture(shapes, 64, "mlp.experts.{}.{part}", "mlp.gate")
    return TinyModel(name, architecture, config, shapes)


def gemma(name: str, kind: str, architecture: str, *, norms: bool, **more: Any) -> TinyModel:
    """A Gemma; `norms`: 3's, of heads."""
    given = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 32, "sliding_window": 12}
    given |= {"tie_word_embeddings": True, "query_pre_attn_scalar": 32, **more}
    config = configured(kind, architecture, **given)
    del config["hidden_act"]
    shapes = dense(config, head_norms=norms)
    for layer in range(config["num_hidden_layers"]):
        for norm in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (64,)
    return TinyModel(name, architecture, config, shapes, norm_centre=0.0)


def phi(name: str, tokens: int = 40, **more: Any) -> TinyModel:
    """A Phi 3."""
    config = configured("phi3", "Phi3ForCausalLM", **more)
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


def olmo(name: str, kind: str, architecture: str, **more: Any) -> TinyModel:
    """An OLMo 2 or 3."""
    config = configured(kind, architecture, **more)
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
    config = configured(
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
    plain("llama2", "llama", "LlamaForCausalLM", num_key_value_heads=4),
    plain(
        "llama3", "llama", "LlamaForCausalLM", head_dim=32, tie_word_embeddings=True,
        rope_scaling=_LLAMA3, rope_theta=500000.0,
    ),
    plain("mistral", "mistral", "MistralForCausalLM", sliding_window=12),
    plain("nemo", "mistral", "MistralForCausalLM", sliding_window=None, head_dim=32),
    plain(
        "ministral3", "ministral3", "Ministral3ForCausalLM", head_dim=32,
        rope_parameters=_MINISTRAL,
    ),
    mixtral("mixtral"),
    qwen("qwen2", "qwen2", "Qwen2ForCausalLM", norms=False, rope_scaling=_YARN),
    qwen("qwen3", "qwen3", "Qwen3ForCausalLM", norms=True, tie_word_embeddings=True),
    qwen(
        "qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM", norms=True, num_experts=_EXPERTS,
        num_experts_per_tok=2, moe_intermediate_size=_WIDTH, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[],
    ),
    gemma(
        "gemma2", "gemma2", "Gemma2ForCausalLM", norms=False, attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    gemma(
        "gemma3", "gemma3_text", "Gemma3ForCausalLM", norms=True, num_hidden_layers=7,
        rope_local_base_freq=10000.0, rope_theta=1000000.0, intermediate_size=64,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    phi("phi3", sliding_window=None, rope_scaling=None),
    phi("phi4mini", partial_rotary_factor=0.5, sliding_window=None,
         rope_scaling={"type": "longrope", "short_factor": _SHORT[:4], "long_factor": _LONG[:4]},
         **_LONG_CONTEXT),
    phi("phi3short", 20, rope_scaling=_LONGROPE, sliding_window=None, **_LONG_CONTEXT),
    plain(
        "smollm3", "smollm3", "SmolLM3ForCausalLM", num_hidden_layers=4, intermediate_size=64,
        no_rope_layers=[1, 1, 1, 0], use_sliding_window=False, tie_word_embeddings=True,
    ),
    plain(
        "granite", "granite", "GraniteForCausalLM", attention_multiplier=0.3,
        embedding_multiplier=1.5, residual_multiplier=0.7, logits_scaling=2.0,
    ),
    olmo("olmo2", "olmo2", "Olmo2ForCausalLM"),
    olmo(
        "olmo3", "olmo3", "Olmo3ForCausalLM", num_hidden_layers=4, intermediate_size=64,
        sliding_window=12, rope_scaling=_YARN | {"attention_factor": 1.1}, rope_theta=500000.0,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    ),
    _gpt_oss("gptoss", mxfp4=True),
    _gpt_oss("gptoss16", mxfp4=False),
)  # fmt: skip
BY_NAME = {model.name: model for model in TINY}
