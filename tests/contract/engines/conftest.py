"""Every engine of the registry, started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from maestrale.engines.base import EngineConfig
from maestrale.engines.choose import has_vllm
from maestrale.engines.registry import ENGINES
from maestrale.models.load_vocabulary import load_vocabulary
from maestrale.models.vocabulary import Vocabulary
from running_engine import RunningEngine


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=[pytest.mark.model] if name == "openvino" else [])
        for name in ENGINES
        if name != "vllm" or has_vllm()
    ],
)
def config(request: pytest.FixtureRequest) -> EngineConfig:
    name: str = request.param
    folder = ""
    options = {}
    if name == "vllm":
        folder = str(request.getfixturevalue("hf_model"))
        options = {"dtype": "float32", "enforce_eager": "True"}
    if name == "openvino":
        folder = str(request.getfixturevalue("prepared_model"))
    return EngineConfig(
        engine=name,
        model_dir=folder,
        max_model_len=1024,
        kv_cache_bytes=128 * 2**20,
        options=options,
    )


@pytest.fixture(scope="session")
def running(config: EngineConfig) -> Iterator[RunningEngine]:
    engine = RunningEngine(config)
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def vocabulary(config: EngineConfig) -> Vocabulary:
    if config.model_dir:
        return load_vocabulary(Path(config.model_dir))
    from maestrale.engines.scripted import byte_vocabulary

    return byte_vocabulary()
