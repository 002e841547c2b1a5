"""Granite 3 and the dense Granite 4: a llama with four scales."""

from __future__ import annotations

from dataclasses import replace

from maestrale.engines.cpu.architectures import config, gguf
from maestrale.engines.cpu.architectures.family import Family, Form, always
from maestrale.engines.cpu.architectures.names import QKV_BIASES, folder_naming, gguf_naming
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.source import WeightSource


def of_gguf(source: WeightSource) -> DecoderSpec:
    """Of the keys below `granite.`; `rope.scaling.finetuned` false: no rotary embedding."""
    keys = source.keys
    spec = gguf.base_spec(source)
    turned = keys.flag("rope.scaling.finetuned", default=True)
    return replace(
        spec,
        layer_ropes=(0 if turned else -1,) * spec.layers,
        embedding_scale=keys.number("embedding_scale", default=0.0) or 1.0,
        residual_scale=keys.number("residual_scale", default=0.0) or 1.0,
        logit_scale=1 / (keys.number("logit_scale", default=0.0) or 1.0),
    )


def of_folder(source: WeightSource) -> DecoderSpec:
    """Of a config.json."""
    keys = source.keys
    keys.ignore("attention_bias", "mlp_bias")  # the tensors tell
    return replace(
        config.base_spec(source),
        attention_scale=keys.number("attention_multiplier", default=1.0),
        embedding_scale=keys.number("embedding_multiplier", default=1.0),
        residual_scale=keys.number("residual_multiplier", default=1.0),
        logit_scale=1 / (keys.number("logits_scaling", default=1.0) or 1.0),
    )


_BIASES = (*QKV_BIASES, "output", "gate", "up", "down")

GRANITE = Family(
    gguf=Form(
        ("granite",), of_gguf, always(gguf_naming(optional_biases=_BIASES, interleaved=True))
    ),
    folder=Form(
        ("granite",),
        of_folder,
        always(folder_naming(optional_biases=_BIASES)),
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    ),
)
