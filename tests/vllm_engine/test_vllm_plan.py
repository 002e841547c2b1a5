"""The plan's KV cache, against what vLLM's build for CPUs reports of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from maestrale.engines.base import EngineConfig
from maestrale.models.describe import describe_folder
from running_engine import RunningEngine

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)
CACHE = 96 << 20


def test_vllm_counts_the_same_tokens(hf_model: Path) -> None:
    shape = describe_folder(hf_model).shape
    per_token = shape.kv_elements * 4  # as float32 here; the plan counts 2 bytes on a GPU
    config = EngineConfig(
        engine="vllm",
        model_dir=str(hf_model),
        max_model_len=512,
        kv_cache_bytes=CACHE,
        options={"dtype": "float32", "enforce_eager": "True"},
    )
    engine = RunningEngine(config)
    try:
        info = engine.engine.describe()
    finally:
        engine.stop()
    # In whole blocks, of which vLLM keeps one to itself.
    block = info.kv_block_tokens
    assert info.kv_capacity_tokens == pytest.approx(CACHE / per_token, abs=2 * block)
