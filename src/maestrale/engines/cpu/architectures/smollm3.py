"""SmolLM3: a llama, some of whose layers have no rotary embedding."""

from __future__ import annotations

from dataclasses import replace

from maestrale.engines.cpu.architectures import config, gguf
from maestrale.engines.cpu.architectures.family import Family, Form, always
from maestrale.engines.cpu.architectures.names import QKV_BIASES, folder_naming, gguf_naming
from maestrale.engines.cpu.keys import MAX_LAYERS
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.source import WeightSource

EVERY = 4  # layers, of which the last has none


def of_gguf(source: WeightSource) -> DecoderSpec:
    """Of the keys below `smollm3.`, which don't say which layers."""
    spec = gguf.base_spec(source)
    return replace(spec, layer_ropes=_without(spec.layers, EVERY))


def of_folder(source: WeightSource) -> DecoderSpec:
    """Of a config.json."""
    keys = source.keys
    keys.ignore("attention_bias", "mlp_bias")  # the tensors tell
    layers = keys.whole("num_hidden_layers", most=MAX_LAYERS)
    given = keys.entries("no_rope_layers", int, layers)
    if given is None:
        ropes = _without(layers, keys.whole("no_rope_layer_interval", default=EVERY))
    else:
        ropes = tuple(0 if has else -1 for has in given)
    # A window, where there is one, is that of the layers without a rotary embedding.
    spec = config.base_spec(source, windows=lambda layer, width: width if ropes[layer] < 0 else 0)
    return replace(spec, layer_ropes=ropes)


def _without(layers: int, every: int) -> tuple[int, ...]:
    return tuple(0 if (layer + 1) % every else -1 for layer in range(layers))


_BIASES = (*QKV_BIASES, "output", "gate", "up", "down")

SMOLLM3 = Family(
    gguf=Form(
        ("smollm3",), of_gguf, always(gguf_naming(optional_biases=_BIASES, interleaved=True))
    ),
    folder=Form(
        ("smollm3",),
        of_folder,
        always(folder_naming(optional_biases=_BIASES)),
        defaults={
            "use_sliding_window": False,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "rope_theta": 2_000_000.0,
            "max_position_embeddings": 32768,
        },
    ),
)
