"""OLMo 2 and 3: norms behind attention and MLP alone, and over all heads at once."""

from __future__ import annotations

from dataclasses import replace

from maestrale.engines.cpu.architectures import config, gguf, rope
from maestrale.engines.cpu.architectures.family import Family, Form, always
from maestrale.engines.cpu.architectures.names import (
    HEAD_NORMS,
    QKV_BIASES,
    folder_naming,
    gguf_naming,
)
from maestrale.engines.cpu.spec import DecoderSpec, Rope
from maestrale.engines.cpu.weights.source import WeightSource

_NORMS = ("post_attention_norm", "post_mlp_norm", *HEAD_NORMS)
_BIASES = (*QKV_BIASES, "output")
_FOLDER_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
DEFAULT_THETA = 10000.0


def _windows(layer: int, width: int) -> int:
    """OLMo 3's: three of four layers."""
    return width if (layer + 1) % 4 else 0


def of_gguf(source: WeightSource) -> DecoderSpec:
    """Of the keys below `olmo2.`; layers with a window have no scaling of the rotary embedding."""
    spec = gguf.base_spec(source, windows=_windows)
    keys = source.keys
    if any(spec.windows):
        theta = keys.number("rope.freq_base", default=DEFAULT_THETA)
        local = rope.plain(spec.head_dim, keys.number("rope.freq_base_swa", default=theta))
        spec = _two_ropes(spec, local)
    return replace(spec, whole_head_norm=True)


def of_folder(source: WeightSource) -> DecoderSpec:
    """Of a config.json."""
    keys = source.keys
    keys.ignore("attention_bias")  # the tensors tell
    spec = config.base_spec(source, windows=_windows)
    if any(spec.windows):
        spec = _two_ropes(spec, _windowed(source, spec))
    return replace(spec, whole_head_norm=True)


def _windowed(source: WeightSource, spec: DecoderSpec) -> Rope:
    """What layers with a window turn by: unscaled, unless the config says something of them."""
    keys = source.keys
    given = config.rope_keys(keys)
    if given is not None and "sliding_attention" in given:
        return config.ropes_of(keys, spec.head_dim, spec.context)[1]
    theta = keys.number("rope_theta", default=DEFAULT_THETA)
    theta = theta if given is None else given.number("rope_theta", default=theta)
    return rope.plain(spec.head_dim, theta)


def _two_ropes(spec: DecoderSpec, local: Rope) -> DecoderSpec:
    return replace(
        spec,
        ropes=(spec.ropes[0], local),
        layer_ropes=tuple(int(width > 0) for width in spec.windows),
    )


OLMO2 = Family(
    gguf=Form(("olmo2",), of_gguf, always(gguf_naming(norms=_NORMS, optional_biases=_BIASES))),
    folder=Form(
        ("olmo2", "olmo3"),
        of_folder,
        always(folder_naming(_FOLDER_NAMES, norms=_NORMS, optional_biases=_BIASES)),
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
        own_defaults={"olmo3": {"rope_theta": 500_000.0, "sliding_window": 4096}},
    ),
)
