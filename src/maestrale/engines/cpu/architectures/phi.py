"""Phi 3, 3.5 and 4, and their minis: queries, keys and values in one, gate and up in one."""

from __future__ import annotations

from maestrale.engines.cpu.architectures import config, gguf
from maestrale.engines.cpu.architectures.family import Family, Form, always
from maestrale.engines.cpu.architectures.names import folder_naming, gguf_naming
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.source import Source


def of_folder(source: Source) -> DecoderSpec:
    """Of a config.json."""
    source.keys.must_be("attention_bias", False)
    return config.base_spec(source)


PHI3 = Family(
    gguf=Form(("phi3",), gguf.base_spec, always(gguf_naming())),
    folder=Form(
        ("phi3",),
        of_folder,
        always(folder_naming()),
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    ),
)
