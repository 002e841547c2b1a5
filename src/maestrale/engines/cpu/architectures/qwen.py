"""Qwen 2, 2.5 and 3, and Qwen 3's mixtures of experts."""

from __future__ import annotations

from maestrale.engines.cpu.architectures import config, gguf
from maestrale.engines.cpu.architectures.family import Family, Form, always
from maestrale.engines.cpu.architectures.names import (
    HEAD_NORMS,
    NORMS,
    QKV_BIASES,
    folder_naming,
    gguf_naming,
)
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.source import WeightSource


def of_folder(source: WeightSource) -> DecoderSpec:
    """Of a config.json; the first `max_window_layers` layers see everything."""
    keys = source.keys
    keys.ignore("attention_bias")  # the tensors tell
    keys.must_be("decoder_sparse_step", 1)
    keys.must_be("mlp_only_layers", [])
    first = keys.whole("max_window_layers", default=0, least=0)
    if source.architecture == "qwen3_moe":
        first = 0  # transformers has no such key for it
    return config.base_spec(source, windows=lambda layer, width: width if layer >= first else 0)


_COMMON = {"use_sliding_window": False, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768}

QWEN2 = Family(
    gguf=Form(("qwen2",), gguf.base_spec, always(gguf_naming(biases=QKV_BIASES))),
    folder=Form(
        ("qwen2",),
        of_folder,
        always(folder_naming(biases=QKV_BIASES)),
        defaults=_COMMON | {"max_window_layers": 28},
    ),
)

_BIASES = (*QKV_BIASES, "output")

QWEN3 = Family(
    gguf=Form(
        ("qwen3", "qwen3moe"),
        gguf.base_spec,
        always(gguf_naming(norms=NORMS + HEAD_NORMS, optional_biases=_BIASES)),
    ),
    folder=Form(
        ("qwen3", "qwen3_moe"),
        of_folder,
        always(folder_naming(norms=NORMS + HEAD_NORMS, optional_biases=_BIASES)),
        defaults=_COMMON | {"norm_topk_prob": False},
        own_defaults={
            "qwen3": {"head_dim": 128, "max_window_layers": 28},
            "qwen3_moe": {
                "num_key_value_heads": 4,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 768,
            },
        },
        harmless=frozenset({"intermediate_size"}),
    ),
)
