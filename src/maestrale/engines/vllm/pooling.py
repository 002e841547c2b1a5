"""Embeddings by vLLM's pooling runner: what it is told, and what it gives.

vLLM is imported by those functions alone that the running engine calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from maestrale.engines.base import Task, TokenDelta
from maestrale.engines.task import pooling_of
from maestrale.errors import ModelError
from maestrale.models.prepared import PreparedModel


@dataclass(frozen=True)
class PooledTask:
    """How vLLM makes one vector of a prompt. `pooling`: of which tokens, in its words."""

    pooling: Literal["LAST", "MEAN"]

    def arguments(self) -> dict[str, Any]:
        """Further keyword arguments of vLLM's AsyncEngineArgs, but for its pooler's."""
        return {"runner": "pooling", "convert": "embed"}

    def pooler(self) -> Any:
        """vLLM's PoolerConfig."""
        from vllm.config import PoolerConfig

        return PoolerConfig(pooling_type=self.pooling)

    def parameters(self) -> Any:
        """vLLM's PoolingParams of a request."""
        from vllm.pooling_params import PoolingParams

        return PoolingParams(task="embed")

    def delta(self, output: Any) -> TokenDelta:
        """vLLM's output, of which there is one for each request."""
        values = output.outputs.data.detach().float().cpu().numpy().reshape(-1)
        cached = getattr(output, "num_cached_tokens", 0) or 0
        return TokenDelta(
            (), "stop", cached_tokens=cached, embedding=values.astype("<f4").tobytes()
        )


def pooled_task(task: Task, prepared: PreparedModel) -> PooledTask | None:
    """How vLLM is to do this task; None where that is to generate.

    Raises: ModelError for reranking.
    """
    if task == "rerank":
        raise ModelError(
            f"{prepared.name} is to rerank, which the vllm engine doesn't do here. Serve it "
            "with --engine cpu, or with 'vllm serve' itself."
        )
    if task == "generate":
        return None
    return PooledTask("MEAN" if pooling_of(prepared) == "mean" else "LAST")
