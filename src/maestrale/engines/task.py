"""What an engine is for: to generate, or to make embeddings; and how it pools them."""

from __future__ import annotations

from maestrale.engines.base import EngineConfig, Task
from maestrale.errors import ModelError
from maestrale.models.pooling import Pooling
from maestrale.models.prepared import PreparedModel

DEFAULT_POOLING: Pooling = "last"  # of a decoder that says nothing of it


def task_of(config: EngineConfig, prepared: PreparedModel) -> Task:
    """What the settings ask for; left to the model, what it was made for.

    Raises: ModelError for a model that can't generate and shall.
    """
    if config.task == "generate" and prepared.headless:
        raise ModelError(
            f"{prepared.name} is saved without what makes tokens of its vectors (lm_head): it can "
            "only make embeddings. Leave out --task chat, or take the chat model it was made from."
        )
    if config.task != "auto":
        return config.task
    return "embed" if prepared.pooling or prepared.headless else "generate"


def pooling_of(prepared: PreparedModel) -> Pooling:
    """How this model's embeddings are made."""
    return prepared.pooling or DEFAULT_POOLING
