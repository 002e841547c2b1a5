"""Phi 3, 3.5 and 4, and their minis: queries, keys and values in one, gate and up in one."""

from __future__ import annotations

from maestrale.engines.cpu.architectures import config, gguf
from maestrale.engines.cpu.architectures.family import Family, Form, always
from maestrale.engines.cpu.architectures.names import folder_naming, gguf_naming
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.source import WeightSource


def of_folder(source: WeightSource) -> DecoderSpec:
    """Of a config.json."""
    for flag in ("attention_bias", "mlp_bias", "lm_head_bias"):
        source.keys.must_be(flag, False)
    source.keys.must_be("full_attn_mod", 1)
    source.keys.must_be("interpolate_factor", 1)
    return config.base_spec(source, partial=True)


PHI3 = Family(
    gguf=Form(("phi3",), gguf.base_spec, always(gguf_naming())),
    folder=Form(
        ("phi3",),
        of_folder,
        always(folder_naming()),
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
    ),
)
