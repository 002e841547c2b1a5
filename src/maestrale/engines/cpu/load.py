"""From a prepared model to a decoder: the kernel found, what fits worked out, weights packed."""

from __future__ import annotations

import logging
from pathlib import Path

from maestrale.engines.base import EngineConfig
from maestrale.engines.cpu.decoder import Decoder, load_decoder
from maestrale.engines.cpu.kernel.build import library
from maestrale.engines.cpu.memory import block_bytes, rounded_types, weight_bytes
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.errors import ModelError
from maestrale.models.fit_cpu import CacheSize, cache_size, left_for_cache, memory_to_use
from maestrale.models.prepared import load_prepared, weights_path

LEVEL = "cpu_level"
OPTIONS = frozenset({LEVEL})  # settings that only this engine has

logger = logging.getLogger(__name__)


def load(config: EngineConfig, *, threads: int, context: int) -> Decoder:
    """The decoder of the prepared model, its weights packed, for sequences of up to `context`.

    Raises: ModelError, EngineError.
    """
    kernel = library(kernel_cache(config), lambda phase, fraction: None)
    level = config.options.get(LEVEL)
    return load_decoder(weights_of(config), kernel, context=context, threads=threads, level=level)


def fitting(config: EngineConfig, spec: DecoderSpec) -> CacheSize:
    """The KV cache and the context for this model, these settings and the memory that is free.

    Raises: EngineError where it doesn't fit.
    """
    return cache_size(
        context=load_prepared(Path(config.model_dir)).context_length,
        block_bytes=block_bytes(spec),
        left=left_for_cache(memory_to_use(), weight_bytes(spec)),
        max_model_len=config.max_model_len,
        cache_bytes=config.kv_cache_bytes,
    )


def introduce(spec: DecoderSpec) -> None:
    """Tell what a person should know of how this model is served."""
    for note in spec.notes:
        logger.info("%s", note)
    if rounded := rounded_types(spec):
        logger.info(
            "Weights of the types %s are rounded to 8 bits in groups of 32; all others are exact.",
            ", ".join(rounded),
        )


def weights_of(config: EngineConfig) -> Path:
    """Where the weights lie. Raises: ModelError for a folder that is another engine's."""
    folder = Path(config.model_dir)
    prepared = load_prepared(folder)
    if not prepared.source:
        raise ModelError(
            f"{folder} was prepared for another engine. Give 'maestrale serve' the model itself."
        )
    return weights_path(prepared, folder)


def kernel_cache(config: EngineConfig) -> Path:
    """The cache that the model was prepared in: its kernel lies there, too."""
    folder = Path(config.model_dir)
    return folder.parent.parent if folder.parent.name == "models" else folder
