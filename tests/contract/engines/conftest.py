"""Every engine of the registry, started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maestrale.engines.base import EngineConfig
from maestrale.engines.choose import has_vllm
from maestrale.engines.registry import ENGINES
from maestrale.models.vocabulary import Vocabulary, load_vocabulary
from ray_cluster import RayCluster
from running_engine import RunningEngine

REPLICAS = "replicas of "  # on Ray Serve: the engine of the name that follows
NAMES = [
    *(name for name in ENGINES if name != "vllm" or has_vllm()),
    f"{REPLICAS}scripted",
    f"{REPLICAS}cpu",
]


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(
            name,
            marks=[
                *([pytest.mark.model] if name.endswith("cpu") else []),
                *([pytest.mark.slow] if name.startswith(REPLICAS) else []),
            ],
        )
        for name in NAMES
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    """Which engine, and whether as replicas."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def config(kind: str, request: pytest.FixtureRequest) -> EngineConfig:
    name = kind.removeprefix(REPLICAS)
    folder = ""
    options = {}
    if name == "vllm":
        folder = str(request.getfixturevalue("hf_model"))
        options = {"dtype": "float32", "enforce_eager": "True"}
    if name == "cpu":
        folder = str(request.getfixturevalue("prepared_model"))
    return EngineConfig(
        engine=name,
        model_dir=folder,
        max_model_len=1024,
        kv_cache_bytes=128 * 2**20,
        threads=1 if kind.startswith(REPLICAS) else None,
        options=options,
    )


@pytest.fixture(scope="session")
def start(
    kind: str, config: EngineConfig, request: pytest.FixtureRequest
) -> Callable[[], RunningEngine]:
    """Starts another engine like `running`."""
    if not kind.startswith(REPLICAS):
        return lambda: RunningEngine(config)
    cluster: RayCluster = request.getfixturevalue("ray_cluster")
    return lambda: cluster.engine(config, least=2)


@pytest.fixture(scope="session")
def running(start: Callable[[], RunningEngine]) -> Iterator[RunningEngine]:
    engine = start()
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def vocabulary(config: EngineConfig) -> Vocabulary:
    if config.model_dir:
        return load_vocabulary(Path(config.model_dir))
    from maestrale.models.vocabulary import byte_vocabulary

    return byte_vocabulary()
