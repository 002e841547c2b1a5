"""Which reasoning format a model has: told by its vocabulary and by its chat template."""

from __future__ import annotations

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.reasoning.base import ReasoningFormat
from maestrale.prompt.reasoning.harmony import NEEDED, HarmonyReasoning
from maestrale.prompt.reasoning.tags import KNOWN, TagFormat, token_of


def reasoning_format(vocabulary: Vocabulary, template: str = "") -> ReasoningFormat | None:
    """The format of a model's thoughts; None for one that isn't known to think.

    A template tells it by the tag that ends a thought: it takes thoughts out of earlier turns, or
    tells the model of the tags. A vocabulary tells it by control tokens.
    """
    if all(token in vocabulary.control_ids for token in NEEDED):
        return HarmonyReasoning(vocabulary)
    for tags in KNOWN:
        both = (tags.start, tags.end)
        is_token = token_of(tags.end, vocabulary) is not None
        told = tags.end in template and (tags.start in template or is_token)
        if told or all(tag in vocabulary.control_ids for tag in both):
            return TagFormat(tags, vocabulary)
    return None
