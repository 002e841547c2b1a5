"""How vLLM is told to embed, and what its outputs mean, without vLLM itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maestrale.engines.base import EngineConfig, Task
from maestrale.engines.vllm.engine import VLLMEngine
from maestrale.engines.vllm.pooling import PooledTask, pooled_task
from maestrale.errors import ModelError
from maestrale.models.prepared import load_prepared
from maestrale.models.resolve import prepare
from tiny_embedder import write_embedder
from tiny_reranker import write_classifier, write_original, write_scored


def task_for(source: Path, cache: Path, task: Task) -> PooledTask | None:
    folder = prepare(str(source), cache, lambda phase, fraction: None, engine="vllm")
    return pooled_task(task, load_prepared(folder))


@pytest.mark.parametrize(("pooling", "told"), [("last", "LAST"), ("mean", "MEAN"), ("", "LAST")])
def test_an_embedding_is_pooled_as_the_model_says(pooling: str, told: Any, tmp_path: Path) -> None:
    source = write_embedder(tmp_path / "m", pooling=pooling)
    assert task_for(source, tmp_path, "embed") == PooledTask(told)
    assert task_for(source, tmp_path, "generate") is None


def test_vectors_stay_as_they_are() -> None:
    class Tensor:
        """As much of torch's as is used."""

        def detach(self) -> Tensor:
            return self

        float = cpu = detach

        def numpy(self) -> Any:
            return np.array([[0.5, -2.0]], np.float32)

    output = SimpleNamespace(outputs=SimpleNamespace(data=Tensor()), num_cached_tokens=3)
    delta = PooledTask("LAST").delta(output)
    assert (delta.token_ids, delta.finish_reason, delta.cached_tokens) == ((), "stop", 3)
    assert np.frombuffer(delta.embedding or b"", "<f4").tolist() == [0.5, -2.0]


@pytest.mark.parametrize(
    ("write", "task"),
    [(write_original, "rerank"), (write_scored, "auto"), (write_classifier, "auto")],
)
def test_reranking_is_refused_by_name_before_vllm_is_loaded(
    write: Callable[[Path], Path], task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maestrale.engines.vllm.engine.require_vllm", lambda: None)
    source = write(tmp_path / "reranker")
    folder = prepare(str(source), tmp_path, lambda phase, fraction: None, engine="vllm")
    engine = VLLMEngine(EngineConfig(engine="vllm", model_dir=str(folder), task=task))
    with pytest.raises(ModelError, match=r"reranker is to rerank.*--engine cpu"):
        asyncio.run(engine.start())
    assert "vllm" not in sys.modules
