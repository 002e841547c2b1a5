"""Messages → token ids: picks the encoder that a model's prompts need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from maestrale.errors import ModelError
from maestrale.models.catalog import CATALOG, find_model
from maestrale.models.fim_tokens import FimMarks
from maestrale.models.prepared import PreparedModel, load_prepared
from maestrale.models.vocabulary import load_vocabulary
from maestrale.prompt.jinja import TemplateReads
from maestrale.prompt.messages import ChatMessage, EncodedPrompt, Tool
from maestrale.prompt.reasoning.base import ReasoningFormat
from maestrale.prompt.reranking import RERANK_TEMPLATE
from maestrale.prompt.tools.base import ToolFormat
from maestrale.text_files import decode_text


class PromptEncoder(Protocol):
    """Turns conversations and plain text into ids, for one model.

    `tool_format` is how the model writes tool calls; None without chat. `native_tools` tells that
    its prompts know tools; others are told of them in plain text. `reasoning` is how the model
    marks its thoughts; None: it isn't known to think. `reads`: what its template looks at.
    `fim_marks`: its control tokens for filling in the middle; None: it can't.
    """

    tool_format: ToolFormat | None
    native_tools: bool
    reasoning: ReasoningFormat | None
    reads: TemplateReads
    fim_marks: FimMarks | None

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Tool] | None = None,
        continue_final: bool = False,
        max_tokens: int | None = None,
    ) -> EncodedPrompt:
        """The prompt that asks the model for its next turn.

        `continue_final` leaves the last turn, the assistant's, open for the model to go on.
        `max_tokens` (the context) lets a hopelessly long prompt be refused in bounded time;
        prompts near the limit are for the caller to count.
        Raises: InvalidRequest, ContextLengthExceeded.
        """

    def encode_text(
        self, text: str, *, add_bos: bool = True, max_tokens: int | None = None
    ) -> tuple[int, ...]:
        """Plain text, in which nothing is a control token.

        Raises: InvalidRequest, ContextLengthExceeded.
        """

    def encode_fim(
        self, prefix: str, suffix: str, *, add_bos: bool = True, max_tokens: int | None = None
    ) -> tuple[int, ...]:
        """The prompt that asks for what stands between two texts, in which nothing is a control
        token. Only for a model with `fim_marks`.

        Raises: InvalidRequest, ContextLengthExceeded.
        """

    def encode_pair(
        self,
        query: str,
        document: str,
        *,
        max_document_tokens: int | None = None,
        max_tokens: int | None = None,
    ) -> tuple[int, ...]:
        """The prompt by which a reranker scores a document, in which nothing of either text is a
        control token. Of the document the first `max_document_tokens` are taken; None: all.

        Raises: InvalidRequest, ContextLengthExceeded.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """What these tokens spell, control tokens by their names.

        Raises: InvalidRequest for an id outside the vocabulary.
        """


def encoder_for(
    folder: Path, chat_template: str | None = None, tool_call_parser: str | None = None
) -> PromptEncoder:
    """The encoder of a prepared model; `chat_template` (Jinja source) replaces its own.

    `tool_call_parser` names the format of its tool calls, where the template doesn't tell it.
    Raises: ModelError when the tokenizer or the template can't be used.
    """
    prepared = load_prepared(folder)
    vocabulary = load_vocabulary(folder)
    if prepared.tokenizer_kind == "mistral":
        if chat_template is not None:
            raise ModelError(
                f"{prepared.name} has Mistral's tokenizer, whose prompts mistral-common makes; "
                "a chat template can't be used with it. Leave out --chat-template."
            )
        from maestrale.prompt.mistral import MistralEncoder

        path = folder / prepared.tokenizer_file
        return MistralEncoder(path, vocabulary, prepared.text_suffix)
    from maestrale.prompt.template import TemplateEncoder

    return TemplateEncoder(
        _document(folder, prepared),
        vocabulary,
        prepared.chat_template if chat_template is None else chat_template,
        prepared.special_tokens,
        prepared.text_prefix,
        tool_call_parser,
        text_suffix=prepared.text_suffix,
        tool_template=prepared.named_templates.get("tool_use") if chat_template is None else None,
        fim_token_ids=prepared.fim_token_ids,
        rerank_template=_rerank_template(prepared),
    )


def _rerank_template(prepared: PreparedModel) -> str | None:
    """A reranker's own; a template of this name in a chat model may be anything."""
    ranks = prepared.pooling == "rank"
    return prepared.named_templates.get(RERANK_TEMPLATE) if ranks else None


def _document(folder: Path, prepared: PreparedModel) -> dict[str, Any]:
    """The tokenizer as `TemplateEncoder` takes it. Raises: ModelError."""
    path = folder / prepared.tokenizer_file
    if prepared.tokenizer_kind == "sentencepiece":
        from maestrale.models.sentencepiece_model import ADDED_TOKENS_FILE, read_model

        return {**_read_json(folder / ADDED_TOKENS_FILE), "sentencepiece": read_model(path)}
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise ModelError(f"The tokenizer {path} can't be read: {error}") from error


def read_template(path: Path | None) -> str | None:
    """The source of `--chat-template`, if one is given. Raises: ModelError."""
    try:
        return None if path is None else decode_text(path.read_bytes())
    except OSError as error:
        raise ModelError(f"The template {path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelError(f"{path} is no template: {error}") from error


def encoder_for_name(name: str) -> PromptEncoder:
    """The encoder of a known Mistral model; its weights need not be on this machine.

    Raises: ModelError when `name` isn't one.
    """
    known = find_model(name)
    if known is None or known.mistral_version is None:
        raise ModelError(
            f"{name} is not a Mistral model known by name. Known are "
            f"{', '.join(model.name for model in CATALOG if model.mistral_version)}."
        )
    from maestrale.models.mistral_vocabulary import mistral_vocabulary, shipped_file
    from maestrale.prompt.mistral import MistralEncoder

    version = known.mistral_version
    return MistralEncoder(shipped_file(version), mistral_vocabulary(version, 0))
