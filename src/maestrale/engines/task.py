"""What an engine is for: to generate, to make embeddings, or to rerank; and how it pools."""

from __future__ import annotations

from maestrale.engines.base import EngineConfig, Task
from maestrale.errors import ModelError
from maestrale.models.pooling import Pooling
from maestrale.models.prepared import PreparedModel

DEFAULT_POOLING: Pooling = "last"  # of a decoder that says nothing of it


def task_of(config: EngineConfig, prepared: PreparedModel) -> Task:
    """What the settings ask for; left to the model, what it was made for.

    Raises: ModelError for a model that can't do what it shall.
    """
    asked, pooling = config.task, prepared.pooling
    if pooling == "rank":
        if asked not in ("auto", "rerank"):
            raise ModelError(
                f"{prepared.name} is a reranker by its own files, and is served for that alone. "
                "Leave out --task, or take the model it was made from."
            )
        return "rerank"
    if asked == "generate" and prepared.headless:
        raise ModelError(
            f"{prepared.name} is saved without what makes tokens of its vectors (lm_head): it can "
            "only make embeddings. Leave out --task chat, or take the chat model it was made from."
        )
    if asked == "rerank" and (pooling or prepared.headless):
        raise ModelError(
            f"{prepared.name} was made for embeddings, and answers no yes or no, which a score is "
            "made of. Leave out --task rerank, or take a reranker, such as Qwen3-Reranker."
        )
    if asked != "auto":
        return asked
    return "embed" if pooling or prepared.headless else "generate"


def pooling_of(prepared: PreparedModel) -> Pooling:
    """How this model's embeddings are made."""
    return prepared.pooling or DEFAULT_POOLING
