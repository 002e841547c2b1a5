"""Reshapes a conversation for templates that refuse it as it is, in mistral-common's way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from maestrale.prompt.messages import ChatMessage

_BLANK_LINE = "\n\n"


def reshaped(messages: Sequence[ChatMessage]) -> Iterator[list[ChatMessage]]:
    """Conversations that say the same with fewer demands on a template, least changed first.

    First all system text in one turn at the beginning and turns of one role merged; then the
    system text within the first user turn.
    """
    system = [message.text for message in messages if message.role == "system"]
    turns = merged([message for message in messages if message.role != "system"])
    if system:
        first = ChatMessage(role="system", content=_BLANK_LINE.join(system))
        yield [first, *turns]
        if turns and turns[0].role == "user":
            content = _BLANK_LINE.join(filter(None, (first.text, turns[0].text)))
            yield [msgspec.structs.replace(turns[0], content=content), *turns[1:]]
    else:
        yield turns


def merged(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Turns in a row of one user, or of the assistant, made one, with a blank line between."""
    result: list[ChatMessage] = []
    for message in messages:
        last = result[-1] if result else None
        if last is None or last.role != message.role or message.role not in ("user", "assistant"):
            result.append(message)
            continue
        result[-1] = msgspec.structs.replace(
            last,
            content=_BLANK_LINE.join(filter(None, (last.text, message.text))),
            tool_calls=last.tool_calls + message.tool_calls,
        )
    return result
