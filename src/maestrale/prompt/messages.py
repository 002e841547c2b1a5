"""A conversation as the encoders take it, and a prompt as they give it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from msgspec import Struct

from maestrale.errors import ContextLengthExceeded, InvalidRequest, Location

MESSAGES = Location("messages")
Role = Literal["system", "user", "assistant", "tool"]
Tool = dict[str, Any]  # a tool as both APIs write it: {"type": "function", "function": {...}}


class ToolCall(Struct, frozen=True, kw_only=True):
    """A call that the assistant made; `arguments` is JSON text, as in the API."""

    id: str
    name: str
    arguments: str


class ChatMessage(Struct, frozen=True, kw_only=True):
    """One turn. `tool_calls` belong to assistant turns, `tool_call_id` to tool turns.

    `content` None: the client said null, which a template may tell from an empty text.
    `reasoning`: what the assistant thought before it.
    """

    role: Role
    content: str | None = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""

    @property
    def text(self) -> str:
        """The content, where null is as good as empty."""
        return self.content or ""


class EncodedPrompt(Struct, frozen=True):
    """The ids that the engine gets, and the same prompt as a person reads it.

    `text` shows control tokens by name; it can't be encoded back, since text that a user
    typed may look like one.
    """

    token_ids: tuple[int, ...]
    text: str


def texts_of(messages: Sequence[ChatMessage], tools: Sequence[Tool] | None) -> Iterator[str]:
    """All text that a prompt has in it; JSON, which encoders may rewrite, at its shortest."""
    for message in messages:
        yield _shortest(message.text) if message.role == "tool" else message.text
        for call in message.tool_calls:
            yield call.name
            yield _shortest(call.arguments)
    for tool in tools or ():
        yield json.dumps(tool, ensure_ascii=False, separators=(",", ":"))


def _shortest(text: str) -> str:
    if text.lstrip()[:1] not in ("{", "["):
        return text.strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def refuse_if_hopeless(texts: Iterable[str], longest: int, max_tokens: int | None) -> None:
    """Refuse texts that can't fit into `max_tokens` however well they are tokenized.

    `longest` is the most bytes that one token spells. This bounds the time spent on a huge
    prompt before its tokens are counted.

    Raises: ContextLengthExceeded; InvalidRequest when a text isn't valid Unicode.
    """
    try:
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "The text has half of a surrogate pair in it, which is not valid Unicode.",
            at=MESSAGES,
        ) from error
    fewest = -(-size // max(longest, 1))
    if max_tokens is not None and fewest > max_tokens:
        raise too_long(fewest, max_tokens)


def too_long(fewest: int, max_tokens: int) -> ContextLengthExceeded:
    """The error for a prompt of which only the least number of tokens is known."""
    return ContextLengthExceeded(
        f"This model's context is {max_tokens} tokens; the prompt has {fewest} or more. "
        "Shorten it.",
        at=MESSAGES,
    )
