"""Which tool-call format a model has: told by its tokenizer or its chat template."""

from __future__ import annotations

from maestrale.errors import ModelError
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.tools import hermes, llama, mistral
from maestrale.prompt.tools.base import ToolFormat

PARSERS = ("hermes", "llama3_json", "mistral")  # vLLM's names


def format_of_template(source: str, vocabulary: Vocabulary) -> ToolFormat | None:
    """The format that a chat template, which knows tools, writes calls in; None when unknown."""
    if hermes.OPEN in source:
        return hermes.HermesFormat(vocabulary)
    if mistral.CALLS in source and mistral.CALLS in vocabulary.control_ids:
        return _mistral(vocabulary, named=mistral.ARGS in source)
    if '"parameters"' in source or llama.PYTHON_TAG in source:
        return llama.LlamaFormat(vocabulary)
    return None


def format_by_name(name: str, vocabulary: Vocabulary) -> ToolFormat:
    """The format called `name`, one of PARSERS. Raises: ModelError when the tokens lack."""
    if name == "hermes":
        return hermes.HermesFormat(vocabulary)
    if name == "llama3_json":
        return llama.LlamaFormat(vocabulary)
    if mistral.CALLS not in vocabulary.control_ids:
        raise ModelError(
            f"This model's tokenizer has no {mistral.CALLS}: --tool-call-parser mistral can't be "
            "used with it."
        )
    return _mistral(vocabulary, named=False)


def format_of_mistral(version: int, vocabulary: Vocabulary) -> ToolFormat | None:
    """The format of Mistral's tokenizer `version` (3 for v3); None for v1, which has none."""
    if version < 2 or mistral.CALLS not in vocabulary.control_ids:
        return None
    return _mistral(vocabulary, named=version >= 11)


def _mistral(vocabulary: Vocabulary, *, named: bool) -> ToolFormat:
    named = named and mistral.ARGS in vocabulary.control_ids
    return mistral.MistralFormat(vocabulary, named=named)
