"""How a model's makers want it sampled, where a request leaves it open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from maestrale.config.sampling import BOUNDS, WHOLE


class SamplingDefaults(Struct, frozen=True, kw_only=True):
    """What a request gets that doesn't say otherwise. `top_k` and `min_p` 0: off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


NEUTRAL = SamplingDefaults()

# llama.cpp's names of them in a GGUF file's metadata.
_GGUF_NAMES = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def of_generation_config(config: Mapping[str, Any]) -> SamplingDefaults:
    """From Hugging Face's generation_config.json; what no request could ask for is left out.

    As vLLM does, whatever `do_sample` says. A length is not taken over: it would cut answers.
    """
    return _within_bounds(config)


def of_gguf(metadata: Mapping[str, Any]) -> SamplingDefaults | None:
    """From a GGUF file's metadata; None where it says nothing."""
    found = {name: metadata[key] for name, key in _GGUF_NAMES.items() if key in metadata}
    return _within_bounds(found) if found else None


def _within_bounds(values: Mapping[str, Any]) -> SamplingDefaults:
    kept: dict[str, Any] = {}
    for name, (least, most) in BOUNDS.items():
        value = values.get(name)
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and least <= value <= most
        ):
            kept[name] = int(value) if name in WHOLE else float(value)
    return SamplingDefaults(**kept)
