"""A conversation as one chat template wants it: what it can't show is told in plain text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.jinja import ChatTemplate
from maestrale.prompt.messages import ChatMessage, Tool
from maestrale.prompt.seal import Seal
from maestrale.prompt.tools.base import ToolFormat
from maestrale.prompt.tools.generic import (
    with_calls_as_text,
    with_results_as_text,
    with_tools_told,
)
from maestrale.prompt.tools.pick import format_by_name, format_of_probe, generic_format
from maestrale.prompt.tools.probe import in_parts, probe
from maestrale.prompt.tools.rendering import renderer

THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # as templates call them
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
            reasoning=_BLANK_LINE.join(filter(None, (last.reasoning, message.reasoning))),
            tool_calls=last.tool_calls + message.tool_calls,
        )
    return result


def with_end(turn: dict[str, Any], end: str) -> None:
    """Put `end` behind the turn's text."""
    content = turn["content"]
    if isinstance(content, list) and content and content[-1]["type"] == "text":
        content[-1]["text"] += end
    elif isinstance(content, list):
        content.append({"type": "text", "text": end})
    else:
        turn["content"] = (content or "") + end


class TemplateTurns:
    """What one template does with tools, calls and null, and its conversations accordingly.

    `tool_format` is how the model writes calls; `native` tells that the template shows the tools.
    """

    def __init__(
        self, template: ChatTemplate, vocabulary: Vocabulary, tool_call_parser: str | None = None
    ) -> None:
        """`tool_call_parser` names the format of calls. Raises: ModelError when it can't be."""
        self._probed = probe(renderer(template))
        reads = template.reads
        self._thoughts = [name for name in THOUGHTS if name in reads.fields]
        self._thought_parts = "thinking" in reads.fields and "thinking" in reads.words
        found: ToolFormat | None
        if tool_call_parser is not None:
            found = format_by_name(tool_call_parser, vocabulary)
        else:
            found = format_of_probe(self._probed, vocabulary)
        self.native = self._probed.shows_tools and found is not None
        self.tool_format: ToolFormat = found or generic_format(vocabulary)

    def prepared(
        self, messages: Sequence[ChatMessage], tools: Sequence[Tool] | None
    ) -> tuple[list[ChatMessage], list[Tool] | None]:
        """The conversation, and the tools that the template is given."""
        turns = list(messages)
        if not self._probed.shows_results or not self._probed.shows_calls:
            turns = with_results_as_text(turns)
        if not self._probed.shows_calls:
            turns = with_calls_as_text(turns, self.tool_format)
        if not tools:
            return turns, None
        if self.native:
            return turns, list(tools)
        if self._probed.shows_tools:  # but not how they are called
            return with_tools_told(turns, (), self.tool_format), list(tools)
        return with_tools_told(turns, tools, self.tool_format), None

    def turn(self, message: ChatMessage, seal: Seal, mark: str) -> dict[str, Any]:
        """The turn as templates expect it: the API's fields, a call's arguments as an object.

        Null stays null where the template can take it: some know by it that there are calls.
        """
        turn: dict[str, Any] = {
            "role": message.role,
            "content": None if self._is_null(message) else seal.apply(message.text, mark),
        }
        if message.reasoning:
            self._add_thought(turn, seal.apply(message.reasoning, mark))
        if message.name is not None:
            turn["name"] = seal.apply(message.name, mark)
        if message.tool_call_id is not None:
            turn["tool_call_id"] = seal.apply(message.tool_call_id, mark)
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": seal.apply(call.id, mark),
                    "type": "function",
                    "function": {
                        "name": seal.apply(call.name, mark),
                        "arguments": seal.apply_to_json(self._arguments(call.arguments), mark),
                    },
                }
                for call in message.tool_calls
            ]
        return in_parts(turn) if self._probed.wants_parts else turn

    def _add_thought(self, turn: dict[str, Any], thought: str) -> None:
        """Under the names that the template reads; one that reads none leaves thoughts out."""
        turn |= dict.fromkeys(self._thoughts, thought)
        if self._thought_parts:  # Mistral's way
            text = turn["content"]
            turn["content"] = [{"type": "thinking", "thinking": thought, "closed": True}]
            if text:
                turn["content"].append({"type": "text", "text": text})

    def _is_null(self, message: ChatMessage) -> bool:
        if message.role != "assistant" or message.text:
            return False
        probed = self._probed
        if message.tool_calls:
            return probed.takes_null and (message.content is None or probed.needs_null)
        return probed.takes_null_alone and message.content is None

    def _arguments(self, text: str) -> Any:
        if self._probed.text_arguments:
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
