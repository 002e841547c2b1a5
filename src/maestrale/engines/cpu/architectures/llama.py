"""Llama 1 to 3.x, Mistral 7B, Nemo, Small, SmolLM2, TinyLlama, Mixtral; Ministral 3.

In GGUF, Mixtral is a llama with experts, and Ministral 3 an architecture of its own.
"""

from __future__ import annotations

from dataclasses import replace

from maestrale.engines.cpu.architectures import config, gguf
from maestrale.engines.cpu.architectures.family import Family, Form, always
from maestrale.engines.cpu.architectures.names import folder_naming, gguf_naming
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.source import WeightSource

BIASES = ("query", "key", "value", "output", "gate", "up", "down")
V01_WINDOW = 4096


def of_gguf(source: WeightSource) -> DecoderSpec:
    """Of the keys below `llama.` or `mistral3.`."""
    spec = gguf.base_spec(source)
    if source.keys.number("attention.temperature_scale", default=0.0):
        beta = source.keys.number("attention.temperature_scale")
        length = source.keys.whole("rope.scaling.original_context_length", default=spec.context)
        length = source.keys.whole("attention.temperature_length", default=length)
        spec = replace(spec, temperature_beta=beta, temperature_length=length)
    if "attention.sliding_window" not in source.keys and _is_mistral_v01(source, spec):
        source.notes.append(
            f"{source.path} has the shape of Mistral 7B v0.1, whose GGUF files leave its window of "
            f"{V01_WINDOW} tokens out; it is served with it."
        )
        spec = replace(spec, windows=(V01_WINDOW,) * spec.layers)
    return spec


def _is_mistral_v01(source: WeightSource, spec: DecoderSpec) -> bool:
    """Whether it is Mistral 7B v0.1 or made from it: v0.2 and Llama 3 have another theta."""
    shape = (spec.hidden, spec.mlp, spec.layers, spec.heads, spec.kv_heads, spec.context)
    theta = source.keys.number("rope.freq_base", default=10000.0)
    return shape == (4096, 14336, 32, 32, 8, 32768) and theta == 10000.0 and not spec.experts


def of_folder(source: WeightSource) -> DecoderSpec:
    """Of a config.json."""
    keys = source.keys
    keys.ignore("attention_bias", "mlp_bias")  # the tensors tell
    keys.must_be("rope_interleaved", False)
    spec = config.base_spec(source)
    rope = config.rope_keys(keys)
    beta = rope.number("llama_4_scaling_beta", default=0.0) if rope is not None else 0.0
    if rope is not None and beta:
        length = rope.whole("original_max_position_embeddings", default=spec.context)
        spec = replace(spec, temperature_beta=beta, temperature_length=length)
    return spec


_MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 131072}
_MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

LLAMA = Family(
    gguf=Form(
        ("llama", "mistral3"),
        of_gguf,
        always(gguf_naming(optional_biases=BIASES, interleaved=True)),
    ),
    folder=Form(
        ("llama", "mistral", "ministral3"),
        of_folder,
        always(folder_naming(optional_biases=BIASES)),
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
        own_defaults={
            "mistral": _MISTRAL | {"sliding_window": V01_WINDOW},
            "ministral3": _MISTRAL
            | {
                "rms_norm_eps": 1e-5,
                "head_dim": 128,
                "max_position_embeddings": 262144,
                "rope_scaling": _MINISTRAL_ROPE,
            },
        },
        harmless=frozenset({"is_llama_config"}),
    ),
)

MIXTRAL = Family(
    gguf=Form(("mixtral",), of_gguf, LLAMA.gguf.naming),
    folder=Form(
        ("mixtral",),
        of_folder,
        always(
            folder_naming(
                {
                    "router": "block_sparse_moe.gate",
                    "expert_gate": "block_sparse_moe.experts.{}.w1",
                    "expert_up": "block_sparse_moe.experts.{}.w3",
                    "expert_down": "block_sparse_moe.experts.{}.w2",
                }
            )
        ),
        defaults=_MISTRAL
        | {
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
)
