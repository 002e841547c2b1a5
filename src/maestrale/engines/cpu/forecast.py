"""What the CPU engine will be, and take, from the model's files alone: no weight is read."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from maestrale import __version__
from maestrale.engines.base import EngineConfig, EngineInfo, Feature, Forecast, Task
from maestrale.engines.cpu.load import weights_of
from maestrale.engines.cpu.memory import block_bytes, weight_bytes
from maestrale.engines.cpu.model_files import spec_of
from maestrale.engines.cpu.scheduler import most_running
from maestrale.engines.cpu.scoring import check_reranker
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.tuning import chosen
from maestrale.engines.task import task_of
from maestrale.models.fit_cpu import BLOCK, PROCESSES, cache_size
from maestrale.models.prepared import load_prepared
from maestrale.models.vocabulary import load_vocabulary

DEFAULT_MAX_NUM_SEQS = 64


def features_of(config: EngineConfig) -> frozenset[Feature]:
    """What the engine can do with these settings."""
    features: set[Feature] = {"logit_bias", "top_logprobs", "json_schema", "regex", "grammar"}
    features |= {"deterministic", "embed"}
    if config.enable_prefix_caching:
        features.add("prefix_cache")
    return frozenset(features)


def embedding_size(task: Task, spec: DecoderSpec) -> int:
    """The numbers of an embedding: of a reranker's one, its score."""
    return 1 if task == "rerank" else spec.hidden


def forecast(config: EngineConfig, memory: int) -> Forecast:
    """The engine of this `config` that takes up to `memory` bytes, its process included.

    Its config says how large the KV cache is, so that it is as large in fact.

    Raises: ModelError, EngineError where it doesn't fit.
    """
    folder = Path(config.model_dir)
    spec, prepared = spec_of(weights_of(config)), load_prepared(folder)
    task = task_of(config, prepared)
    if task == "rerank":
        check_reranker(task, spec, prepared, load_vocabulary(folder))
    weights, block = weight_bytes(spec), block_bytes(spec)
    size = cache_size(
        context=prepared.context_length,
        block_bytes=block,
        left=max(0, memory - weights - PROCESSES),
        max_model_len=config.max_model_len,
        cache_bytes=config.kv_cache_bytes,
    )
    step_tokens = chosen(config).step_tokens
    info = EngineInfo(
        engine="cpu",
        version=__version__,
        fingerprint="",
        max_model_len=size.max_model_len,
        vocab_size=prepared.vocab_size,
        kv_capacity_tokens=size.blocks * BLOCK,
        max_num_seqs=most_running(config.max_num_seqs or DEFAULT_MAX_NUM_SEQS, step_tokens),
        max_num_batched_tokens=step_tokens,
        features=features_of(config),
        kv_block_tokens=BLOCK,
        task=task,
        embedding_size=embedding_size(task, spec),
    )
    cache = size.blocks * block
    fixed = replace(config, kv_cache_bytes=cache, max_model_len=size.max_model_len)
    return Forecast(config=fixed, info=info, memory=weights + cache + PROCESSES)
