"""Prompts for Mistral's models, by mistral-common: Mistral's own templates, token-exact.

Only messages and tools are given to it: its request also knows sampling fields, but caps
temperature and forbids stop and seed, which don't concern the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.protocol.instruct.chunk import ContentChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import FunctionCall
from mistral_common.protocol.instruct.tool_calls import Tool as MistralTool
from mistral_common.protocol.instruct.tool_calls import ToolCall as MistralToolCall
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from maestrale.errors import InvalidRequest, Location
from maestrale.models.fim_tokens import fim_marks
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.decode import spell
from maestrale.prompt.jinja import TemplateReads
from maestrale.prompt.messages import (
    MESSAGES,
    ChatMessage,
    EncodedPrompt,
    Tool,
    refuse_if_hopeless,
    texts_of,
)
from maestrale.prompt.reasoning.base import ReasoningFormat
from maestrale.prompt.reasoning.pick import reasoning_format
from maestrale.prompt.tools.base import ToolFormat
from maestrale.prompt.tools.generic import (
    with_calls_as_text,
    with_results_as_text,
    with_tools_told,
)
from maestrale.prompt.tools.pick import format_of_mistral, generic_format
from maestrale.prompt.tools.reading import make_id

_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
_Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage


class MistralEncoder:
    """Encodes conversations for one version of Mistral's tokenizer."""

    def __init__(
        self, tokenizer_file: Path, vocabulary: Vocabulary, text_suffix: tuple[int, ...] = ()
    ) -> None:
        """`text_suffix` stands behind plain text, as embedding models want it."""
        self._tokenizer: Any = MistralTokenizer.from_file(tokenizer_file)
        self._plain = self._tokenizer.instruct_tokenizer.tokenizer
        self._version = self._tokenizer.version
        self._vocabulary = vocabulary
        self._suffix = text_suffix
        self._longest = max(map(len, vocabulary.token_bytes))
        native = format_of_mistral(self._version.version_num, vocabulary)
        self.native_tools = native is not None
        self.tool_format: ToolFormat | None = native or generic_format(vocabulary)
        self.reasoning: ReasoningFormat | None = reasoning_format(vocabulary)
        self.reads = TemplateReads()
        self.fim_marks = fim_marks(vocabulary.control_ids)

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Tool] | None = None,
        continue_final: bool = False,
        max_tokens: int | None = None,
    ) -> EncodedPrompt:
        """See `PromptEncoder.encode_chat`."""
        if not messages:
            raise InvalidRequest("messages must not be empty.", at=MESSAGES)
        if not self.native_tools:
            messages, tools = self._told(messages, tools), None
        messages, continue_final = _without_empty_answers(messages, continue_final)
        if not messages:
            raise InvalidRequest(
                "There is nothing to answer: the only message is an empty one of the assistant.",
                at=MESSAGES,
            )
        refuse_if_hopeless(texts_of(messages, tools), self._longest, max_tokens)
        both = self._version >= TokenizerVersion.v7
        turns = list(
            _turns(
                self._in_order(messages),
                text_with_calls=both,
                thoughts=self._version >= TokenizerVersion.v13 and self.reasoning is not None,
            )
        )
        if continue_final:
            if not isinstance(turns[-1], AssistantMessage):
                raise InvalidRequest(
                    "Only a last message of the assistant can be continued.",
                    at=MESSAGES,
                )
            turns[-1].prefix = True
        try:
            request = ChatCompletionRequest(messages=turns, tools=_tools(tools))
            ids = self._tokenizer.encode_chat_completion(request).tokens
        except MistralCommonException as error:
            raise InvalidRequest(error.message, at=MESSAGES) from error
        except ValueError as error:
            raise InvalidRequest(str(error), at=MESSAGES) from error
        except RecursionError as error:  # mistral-common reads and rewrites JSON in messages
            what = "JSON in a message is nested too deep."
            raise InvalidRequest(what, at=MESSAGES) from error
        return EncodedPrompt(tuple(ids), spell(self._vocabulary, ids))

    def encode_text(
        self, text: str, *, add_bos: bool = True, max_tokens: int | None = None
    ) -> tuple[int, ...]:
        """See `PromptEncoder.encode_text`."""
        refuse_if_hopeless((text,), self._longest, max_tokens)
        ids = self._plain.encode(text, bos=add_bos, eos=False)
        return (*ids, *self._suffix) if add_bos else tuple(ids)

    def encode_fim(
        self, prefix: str, suffix: str, *, add_bos: bool = True, max_tokens: int | None = None
    ) -> tuple[int, ...]:
        """See `PromptEncoder.encode_fim`."""
        refuse_if_hopeless((prefix, suffix), self._longest, max_tokens)
        ids = self._tokenizer.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens
        return tuple(ids if add_bos else ids[1:])

    def encode_pair(
        self,
        query: str,
        document: str,
        *,
        max_document_tokens: int | None = None,
        max_tokens: int | None = None,
    ) -> tuple[int, ...]:
        """No reranker has Mistral's tokenizer. Raises: InvalidRequest."""
        raise InvalidRequest(
            "This model has Mistral's tokenizer, and no prompt to rerank with. Serve a reranker, "
            "such as Qwen3-Reranker.",
            at=Location("model"),
        )

    def decode(self, ids: Sequence[int]) -> str:
        """See `PromptEncoder.decode`."""
        return spell(self._vocabulary, ids)

    def _told(
        self, messages: Sequence[ChatMessage], tools: Sequence[Tool] | None
    ) -> Sequence[ChatMessage]:
        """For v1, which has no place for tools: they, calls and results in plain text."""
        assert self.tool_format is not None
        turns = with_calls_as_text(with_results_as_text(messages), self.tool_format)
        return with_tools_told(turns, tools, self.tool_format) if tools else turns

    def _in_order(self, messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
        """System turns first: before v7 they become one text wherever they stand."""
        if self._version >= TokenizerVersion.v7:
            return messages
        return sorted(messages, key=lambda message: message.role != "system")


def _without_empty_answers(
    messages: Sequence[ChatMessage], continue_final: bool
) -> tuple[list[ChatMessage], bool]:
    """An empty answer is left out, since Mistral's formats have no place for one.

    To continue an empty answer is to begin one.
    """
    kept = [each for each in messages if each.role != "assistant" or each.text or each.tool_calls]
    return kept, continue_final and kept[-1:] == list(messages[-1:])


def _turns(
    messages: Sequence[ChatMessage], *, text_with_calls: bool, thoughts: bool
) -> Iterator[_Message]:
    """Without `text_with_calls` the format has no place for text beside calls: it is left out.

    So it is with `thoughts`.
    """
    for message in messages:
        if message.role == "system":
            yield SystemMessage(content=message.text)
        elif message.role == "user":
            yield UserMessage(content=message.text)
        elif message.role == "tool":
            yield ToolMessage(
                content=message.text,
                tool_call_id=_call_id(message.tool_call_id),
                name=message.name,
            )
        else:
            calls = [
                MistralToolCall(
                    id=_call_id(call.id) or "null",
                    function=FunctionCall(name=call.name, arguments=call.arguments),
                )
                for call in message.tool_calls
            ]
            text = message.text if text_with_calls or not calls else ""
            content: list[ContentChunk] | str | None = text or None
            if thoughts and message.reasoning:
                content = [ThinkChunk(thinking=message.reasoning, closed=True)]
                content += [TextChunk(text=text)] if text else []
            yield AssistantMessage(content=content, tool_calls=calls or None)


def _call_id(given: str | None) -> str | None:
    """An id as Mistral's prompts want it; another provider's is replaced, always by the same."""
    if not given or _CALL_ID.fullmatch(given):
        return given or None
    return make_id(given.encode(errors="replace"))


def _tools(tools: Sequence[Tool] | None) -> list[MistralTool] | None:
    """Raises: InvalidRequest naming what is wrong with the tools."""
    try:
        return [MistralTool.model_validate(tool) for tool in tools] if tools else None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"tools: {where}: {first['msg']}", at=Location("tools")) from error
