"""Tools for models whose prompts know none: told in plain text, as are calls and results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from maestrale.prompt.messages import ChatMessage, Tool, ToolCall
from maestrale.prompt.tools.base import ToolFormat

_EXAMPLE = ToolCall(id="", name="NAME", arguments='{"ARGUMENT": "VALUE"}')


def with_tools_told(
    messages: Sequence[ChatMessage], tools: Sequence[Tool], form: ToolFormat
) -> list[ChatMessage]:
    """The conversation with the tools, and how to call one, in its system text.

    Without `tools` it tells how to call one only.
    """
    text = _instruction(tools, form)
    if messages and messages[0].role == "system":
        first = replace(messages[0], content="\n\n".join(filter(None, (messages[0].text, text))))
        return [first, *messages[1:]]
    return [ChatMessage(role="system", content=text), *messages]


def _instruction(tools: Sequence[Tool], form: ToolFormat) -> str:
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    told = f"You may call these functions:\n{listed}\n\n" if listed else ""
    return (
        f"{told}To call a function, answer with nothing but its name and arguments, written like "
        "this:\n"
        f"{form.write([_EXAMPLE])}\n"
        "The result then comes in a message. Where no function is needed, answer in words."
    )


def with_calls_as_text(messages: Sequence[ChatMessage], form: ToolFormat) -> list[ChatMessage]:
    """The conversation with its calls as the model would have written them."""
    return [
        replace(
            message,
            content="\n".join(filter(None, (message.text, form.write(message.tool_calls)))),
            tool_calls=(),
        )
        if message.tool_calls
        else message
        for message in messages
    ]


def with_results_as_text(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The conversation with the results of calls in turns of the user."""
    return list(_results_told(messages))


def _results_told(messages: Sequence[ChatMessage]) -> Iterator[ChatMessage]:
    names: dict[str, str] = {}
    results: list[str] = []
    for message in messages:
        names.update((call.id, call.name) for call in message.tool_calls)
        if message.role == "tool":
            name = message.name or names.get(message.tool_call_id or "")
            told = f"Result of {name}:" if name else "Result:"
            results.append(f"{told}\n{message.text}")
            continue
        if results:
            yield ChatMessage(role="user", content="\n\n".join(results))
            results = []
        yield message
    if results:
        yield ChatMessage(role="user", content="\n\n".join(results))
