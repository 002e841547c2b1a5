"""What a model is served for, and what is asked of it: a chat model makes no embeddings."""

from __future__ import annotations

from maestrale.chat.options import Asked, Inputs, Ranking
from maestrale.engines.base import EngineInfo, Task
from maestrale.errors import InvalidRequest, Location

MODEL = Location("model")
WRONG_TASK = "wrong_task"
_SERVED: dict[Task, str] = {
    "generate": "for chat",
    "embed": "for embeddings (/v1/embeddings)",
    "rerank": "for reranking (/v1/rerank)",
}
_LACKS: dict[Task, str] = {
    "generate": "answers nothing. For answers serve a chat model.",
    "embed": "makes no embeddings. An embedding model does; or the server is started with "
    "--task embed.",
    "rerank": "ranks no documents. A reranker does, such as Qwen3-Reranker, whose original is "
    "served with --task rerank. Otherwise compare embeddings of the query and the documents "
    "(/v1/embeddings).",
}


def check_task(asked: Asked, info: EngineInfo) -> None:
    """Whether the model is served for what is asked of it. Raises: InvalidRequest."""
    wanted: Task = "generate"
    if isinstance(asked, Inputs):
        wanted = "embed"
    elif isinstance(asked, Ranking):
        wanted = "rerank"
    if wanted != info.task:
        raise InvalidRequest(
            f"This model is served {_SERVED[info.task]}, and {_LACKS[wanted]}",
            at=MODEL,
            code=WRONG_TASK,
        )
