"""What the scripted engine will be: its pretended KV cache is all the memory that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from maestrale.engines.base import EngineConfig, EngineInfo, Feature, Forecast, Task
from maestrale.engines.scripted.answers import EMBEDDING_SIZE
from maestrale.engines.task import task_of
from maestrale.models.prepared import load_prepared

BYTES_PER_TOKEN = 1024  # of the pretended KV cache
KV_CACHE_BYTES = 1 << 30
MAX_NUM_SEQS = 64


def foreseen_info(config: EngineConfig, vocab_size: int) -> EngineInfo:
    """What an engine of this config is, but for its fingerprint. Raises: ModelError."""
    task: Task = "generate" if config.task == "auto" else config.task
    context = 4096
    if config.model_dir:
        prepared = load_prepared(Path(config.model_dir))
        task, context = task_of(config, prepared), prepared.context_length
    cache = config.kv_cache_bytes or KV_CACHE_BYTES
    return EngineInfo(
        engine="scripted",
        version="1",
        fingerprint="",
        max_model_len=config.max_model_len or context,
        vocab_size=vocab_size,
        kv_capacity_tokens=max(1, cache // BYTES_PER_TOKEN),
        max_num_seqs=config.max_num_seqs or MAX_NUM_SEQS,
        features=frozenset(get_args(Feature)) - {"prefix_cache"},
        task=task,
        embedding_size=1 if task == "rerank" else EMBEDDING_SIZE,
    )


def forecast(config: EngineConfig, memory: int) -> Forecast:
    """The engine of this `config`; it takes no heed of `memory`. Raises: ModelError."""
    vocab_size = load_prepared(Path(config.model_dir)).vocab_size
    info = foreseen_info(config, vocab_size)
    return Forecast(config=config, info=info, memory=config.kv_cache_bytes or KV_CACHE_BYTES)
