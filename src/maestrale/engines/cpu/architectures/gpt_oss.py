"""gpt-oss: experts in MXFP4, sinks, biases everywhere, a window in every other layer, YaRN."""

from __future__ import annotations

from dataclasses import replace

from maestrale.engines.cpu.architectures import config, gguf
from maestrale.engines.cpu.architectures.family import Family, Form, always
from maestrale.engines.cpu.architectures.names import QKV_BIASES, folder_naming, gguf_naming
from maestrale.engines.cpu.spec import CLIPPED_SWIGLU, DecoderSpec
from maestrale.engines.cpu.weights.source import WeightSource

ALPHA, LIMIT = 1.702, 7.0


def _windows(layer: int, width: int) -> int:
    return 0 if layer % 2 else width


def of_gguf(source: WeightSource) -> DecoderSpec:
    """Of the keys below `gpt-oss.`."""
    spec = gguf.base_spec(source, windows=_windows, truncate=False)
    return _clipped(spec, ALPHA, LIMIT)


def of_folder(source: WeightSource) -> DecoderSpec:
    """Of a config.json."""
    keys = source.keys
    keys.must_be("attention_bias", True)
    spec = config.base_spec(source, windows=_windows)
    alpha = keys.number("swiglu_alpha", default=ALPHA)
    return _clipped(spec, alpha, keys.number("swiglu_limit", default=LIMIT))


def _clipped(spec: DecoderSpec, alpha: float, limit: float) -> DecoderSpec:
    experts = None if spec.experts is None else replace(spec.experts, softmax_first=False)
    return replace(
        spec, activation=CLIPPED_SWIGLU, clip_alpha=alpha, clip_limit=limit, experts=experts
    )


_BIASES = (*QKV_BIASES, "output", "router", "gate_up", "gate", "up", "down")

GPT_OSS = Family(
    gguf=Form(
        ("gpt-oss",),
        of_gguf,
        always(gguf_naming({"mlp_norm": "post_attention_norm"}, biases=_BIASES, sinks=True)),
    ),
    folder=Form(
        ("gpt_oss",),
        of_folder,
        always(
            folder_naming(
                {"router": "mlp.router"},
                biases=_BIASES,
                sinks=True,
                gate_up_interleaved=True,
                experts_transposed=True,
            )
        ),
        defaults={
            "rms_norm_eps": 1e-5,
            "head_dim": 64,
            "num_key_value_heads": 8,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "rope_theta": 150_000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
            "sliding_window": 128,
            "max_position_embeddings": 131072,
        },
        harmless=frozenset({
            "initial_context_length", "rope_scaling_factor", "rope_ntk_alpha", "rope_ntk_beta",
        }),  # what rope_scaling says, too
    ),
)  # fmt: skip
