"""Conversations and texts ↔ token ids, for one model, without holding others up.

Encoding more than a few thousand characters takes milliseconds: it leaves the event loop, and no
more than two such texts are encoded at once, so that the engine keeps its share of the CPU.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from maestrale.chat.embedding import check_length, place_of
from maestrale.chat.options import (
    DOCUMENTS,
    PROMPT,
    QUERY,
    SUFFIX,
    Conversation,
    Ranking,
    check_token_ids,
    too_long,
)
from maestrale.errors import InvalidRequest, Location
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.decode import IncrementalDecoder
from maestrale.prompt.encode import PromptEncoder
from maestrale.prompt.jinja import template_variables
from maestrale.prompt.messages import ChatMessage, EncodedPrompt, Tool

LONG_TEXT = 16_384  # characters
LONG_TEXTS_AT_ONCE = 2
RERANK_PROMPT = 512  # characters, about, that a reranker's template adds to each document
TOKENS = Location("tokens")
T = TypeVar("T")


class Tokenizer:
    """A model's prompts and vocabulary. `limit` is its context, which may change at run time."""

    def __init__(
        self, encoder: PromptEncoder, vocabulary: Vocabulary, limit: Callable[[], int]
    ) -> None:
        self.encoder = encoder
        self.vocabulary = vocabulary
        self._limit = limit
        self._heavy = ThreadPoolExecutor(LONG_TEXTS_AT_ONCE, "long-texts")

    async def encode_chat(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[Tool] | None = None,
        variables: Sequence[tuple[str, bool | int | str]] = (),
    ) -> EncodedPrompt:
        """The prompt; the template knows `variables`, too.

        Raises: InvalidRequest, ContextLengthExceeded.
        """
        messages = conversation.messages
        # A template may take what time it likes, even for a short conversation.
        heavy = sum(map(_size, messages)) > LONG_TEXT or bool(tools)
        limit = self._limit()

        def encode() -> EncodedPrompt:
            with template_variables(dict(variables)):
                return self.encoder.encode_chat(
                    messages, tools=tools, continue_final=conversation.continues, max_tokens=limit
                )

        return await self._in_thread(encode, heavy=heavy)

    async def encode_text(self, text: str, *, add_bos: bool = True) -> tuple[int, ...]:
        """A plain text's token ids. Raises: ContextLengthExceeded."""
        limit = self._limit()

        def encode() -> tuple[int, ...]:
            return self.encoder.encode_text(text, add_bos=add_bos, max_tokens=limit)

        return encode() if len(text) <= LONG_TEXT else await self._in_thread(encode, heavy=True)

    async def encode_prompt(self, prompt: str | Sequence[int], *, add_bos: bool) -> tuple[int, ...]:
        """A prompt's token ids, if it isn't given as such. Raises: InvalidRequest."""
        if isinstance(prompt, str):
            return await self.encode_text(prompt, add_bos=add_bos)
        if len(prompt) > self._limit():
            raise too_long(self._limit(), PROMPT, f"the prompt has {len(prompt)} tokens")
        return check_token_ids(prompt, len(self.vocabulary), PROMPT)

    async def encode_inputs(
        self, inputs: Sequence[str | Sequence[int]], *, add_special: bool
    ) -> list[tuple[int, ...]]:
        """Texts' token ids with what the model wants around them; those given as such as they are.

        Raises: InvalidRequest, ContextLengthExceeded.
        """
        limit, size = self._limit(), len(self.vocabulary)

        def encode() -> list[tuple[int, ...]]:
            encoded = []
            for index, one in enumerate(inputs):
                at = place_of(index, inputs)
                if isinstance(one, str):
                    ids = self._encode_at(at, one, add_special, limit)
                else:
                    check_length(len(one), limit, at)
                    ids = check_token_ids(one, size, at)
                check_length(len(ids), limit, at)
                encoded.append(ids)
            return encoded

        if sum(map(len, inputs)) <= LONG_TEXT:
            return encode()
        return await self._in_thread(encode, heavy=True)

    def _encode_at(self, at: Location, text: str, add_special: bool, limit: int) -> tuple[int, ...]:
        """Raises: InvalidRequest, ContextLengthExceeded, which name this place."""
        try:
            return self.encoder.encode_text(text, add_bos=add_special, max_tokens=limit)
        except InvalidRequest as error:
            error.at = at
            raise

    async def encode_pairs(self, asked: Ranking) -> list[tuple[int, ...]]:
        """The prompt of each document. Raises: InvalidRequest, ContextLengthExceeded."""
        limit, query = self._limit(), asked.query

        def encode() -> list[tuple[int, ...]]:
            encoded = []
            for index, document in enumerate(asked.documents):
                at = QUERY if len(query) > len(document) else DOCUMENTS.at(index)
                try:
                    ids = self.encoder.encode_pair(
                        *(query, document),
                        max_document_tokens=asked.max_document_tokens,
                        max_tokens=limit,
                    )
                except InvalidRequest as error:
                    error.at = at
                    raise
                if len(ids) > limit:
                    raise too_long(limit, at, f"query and document make a prompt of {len(ids)}")
                encoded.append(ids)
            return encoded

        repeated = (len(query) + RERANK_PROMPT) * len(asked.documents)
        size = repeated + sum(map(len, asked.documents))
        return encode() if size <= LONG_TEXT else await self._in_thread(encode, heavy=True)

    async def encode_fim(
        self, prompt: str | Sequence[int], suffix: str, *, add_bos: bool
    ) -> tuple[int, ...]:
        """The prompt that asks for what stands between two texts. Raises: InvalidRequest."""
        if not isinstance(prompt, str):
            raise InvalidRequest(
                PROMPT, " must be text where ", SUFFIX, " is given, not token ids.", at=PROMPT
            )
        limit = self._limit()

        def encode() -> tuple[int, ...]:
            return self.encoder.encode_fim(prompt, suffix, add_bos=add_bos, max_tokens=limit)

        heavy = len(prompt) + len(suffix) > LONG_TEXT
        return await self._in_thread(encode, heavy=heavy)

    async def decode(self, token_ids: Sequence[int]) -> str:
        """What these ids spell, at most as many as the context holds. Raises: InvalidRequest."""
        limit = self._limit()
        if len(token_ids) > limit:  # the longest tokens would spell a hundred times the request
            raise InvalidRequest(
                TOKENS,
                f" has {len(token_ids)} ids; up to {limit}, the context length, are "
                "spelled. Send them in parts.",
                at=TOKENS,
            )
        checked = check_token_ids(token_ids, len(self.vocabulary), TOKENS)
        heavy = len(checked) > LONG_TEXT
        return await self._in_thread(lambda: self.encoder.decode(checked), heavy=heavy)

    def plain(self, token_ids: Sequence[int]) -> str:
        """These ids as an answer would spell them: without control tokens."""
        return IncrementalDecoder(self.vocabulary).push(token_ids)

    def spell(self, token_id: int) -> tuple[str, bytes]:
        """A token as text for logprobs, and its bytes; a control token spells its name."""
        if not 0 <= token_id < len(self.vocabulary):
            return "", b""
        raw = self.vocabulary.token_bytes[token_id]
        if not raw:
            name = self._control_names.get(token_id, "")
            return name, name.encode()
        try:
            return raw.decode(), raw
        except UnicodeDecodeError:  # a part of a character: spelled as OpenAI does
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw

    @functools.cached_property
    def _control_names(self) -> dict[int, str]:
        return {token_id: name for name, token_id in self.vocabulary.control_ids.items()}

    async def _in_thread(self, work: Callable[[], T], *, heavy: bool) -> T:
        pool = self._heavy if heavy else None
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def _size(message: ChatMessage) -> int:
    """The characters of a message."""
    written = len(message.text) + len(message.reasoning)
    return written + sum(len(call.arguments) for call in message.tool_calls)
