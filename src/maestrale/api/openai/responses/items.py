"""Items of a conversation: read from a body or from what is kept, and made into messages.

An item that was read has its form for later, with an id, as `input_items` lists it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from maestrale.api.openai.responses.schemas import (
    CallItem,
    MessageItem,
    OutputItem,
    ReasoningItem,
    ReferenceItem,
    RefusalPart,
    TextPart,
)
from maestrale.api.openai.responses.tools import full_name
from maestrale.api.validation import decoded_part, not_text, typed_parts
from maestrale.errors import InvalidRequest, Sent, UnsupportedParameter, quoted
from maestrale.prompt.messages import ChatMessage, ToolCall

TEXT_PARTS = ("input_text", "output_text", "text")
REFERENCE = "item_reference"
DIRECT_CALLER = {"type": "direct"}
Shown = dict[str, Any]


class Item(Struct, frozen=True, kw_only=True):
    """One item: `at` is its place in the body; `shown` how it is listed, and kept.

    A message has `text`, a call of the assistant `call`, what it gave `text` and `call_id`, and a
    thought `thought`.
    """

    kind: Literal["message", "call", "output", "thought"]
    role: Literal["system", "user", "assistant", "tool"]
    at: Sent
    shown: Shown
    text: str = ""
    call: ToolCall | None = None
    call_id: str | None = None
    thought: str = ""


Placed = list[tuple[ChatMessage, Sent]]
"""Messages for the prompt, each with its place in the body."""


def new_id(prefix: str) -> str:
    """An id for an item that came without one."""
    return f"{prefix}_{secrets.token_hex(12)}"


def read_input(
    given: str | list[Raw] | None, kept: Mapping[str, bytes] | None = None
) -> tuple[Item, ...]:
    """The items of a body's `input`. `kept`: items that it may refer to, by id.

    Raises: InvalidRequest, UnsupportedParameter naming the item.
    """
    at = Sent("input")
    if given is None:
        return ()
    if isinstance(given, str):
        return (_message(MessageItem(role="user", content=given), at),)
    return tuple(_read(raw, at.at(index), kept or {}) for index, raw in enumerate(given))


def read_kept(raws: Iterable[bytes], at: Sent) -> tuple[Item, ...]:
    """Items that were kept; whatever is wrong with them is said of `at`."""
    return tuple(_read(Raw(raw), at, {}, places=False) for raw in raws)


def references(given: str | list[Raw] | None) -> list[str]:
    """Ids of kept items that a body's `input` refers to. Raises: InvalidRequest."""
    if not isinstance(given, list):
        return []
    found = []
    for index, raw in enumerate(given):
        if b'"id"' in bytes(raw):
            at = Sent("input", index)
            written = decoded_part(raw, Any, at)
            if isinstance(written, dict) and _kind(written) == REFERENCE:
                found.append(decoded_part(raw, ReferenceItem, at).id)
    return found


def _kind(written: dict[str, Any]) -> str:
    """The type of an item; messages and references may leave it out."""
    kind = written.get("type")
    if kind is None:
        return REFERENCE if set(written) - {"type"} == {"id"} else "message"
    return kind if isinstance(kind, str) else ""


def _read(raw: Raw, at: Sent, kept: Mapping[str, bytes], *, places: bool = True) -> Item:
    written = decoded_part(raw, Any, at)
    if not isinstance(written, dict):
        raise InvalidRequest("An item is an object.", at=at)
    kind = _kind(written)
    if kind == "message":
        if written.pop("type", "message") is None:
            raw = Raw(msgspec.json.encode(written))
        return _message(decoded_part(raw, MessageItem, at), at, places=places)
    if kind == "function_call":
        return _call(decoded_part(raw, CallItem, at), at)
    if kind == "function_call_output":
        return _output(decoded_part(raw, OutputItem, at), at)
    if kind == "reasoning":
        return _thought(decoded_part(raw, ReasoningItem, at), at)
    if kind == REFERENCE:
        wanted = decoded_part(raw, ReferenceItem, at).id
        if wanted not in kept:
            raise InvalidRequest(
                f"There is no item {quoted(wanted)!r} here: send the item itself.",
                at=at.at("id"),
                code="item_not_found",
            )
        return _read(Raw(kept[wanted]), at, {}, places=False)
    raise UnsupportedParameter(
        f"An item of type {quoted(kind)!r} is not supported: items are messages, function calls, "
        "their outputs, and reasoning.",
        at=at.at("type"),
    )


def _message(item: MessageItem, at: Sent, *, places: bool = True) -> Item:
    text = _text(item.content, at.at("content") if places and len(at) > 1 else at)
    mine = item.role == "assistant"
    part: Shown = {"type": "output_text" if mine else "input_text", "text": text}
    if mine:
        part |= {"annotations": [], "logprobs": []}
    shown: Shown = {
        "id": item.id or new_id("msg"),
        "type": "message",
        "status": item.status or "completed",
        "role": item.role,
        "content": [part],
    }
    if item.phase is not None:
        shown["phase"] = item.phase
    role = "system" if item.role == "developer" else item.role
    return Item(kind="message", role=role, at=at, shown=shown, text=text)


def _call(item: CallItem, at: Sent) -> Item:
    _check_caller(item, at)
    shown: Shown = {
        "id": item.id or new_id("fc"),
        "type": "function_call",
        "status": item.status or "completed",
        "call_id": item.call_id,
        "name": item.name,
        "arguments": item.arguments,
    }
    if item.namespace is not None:
        shown["namespace"] = item.namespace
    name = full_name(item.namespace, item.name)
    call = ToolCall(id=item.call_id, name=name, arguments=item.arguments or "{}")
    return Item(kind="call", role="assistant", at=at, shown=shown, call=call)


def _output(item: OutputItem, at: Sent) -> Item:
    _check_caller(item, at)
    text = _text(item.output, at.at("output"))
    shown: Shown = {
        "id": item.id or new_id("fco"),
        "type": "function_call_output",
        "status": item.status or "completed",
        "call_id": item.call_id,
        "output": text,
    }
    return Item(kind="output", role="tool", at=at, shown=shown, text=text, call_id=item.call_id)


def _thought(item: ReasoningItem, at: Sent) -> Item:
    said = [each.text for each in item.content or item.summary]
    shown: Shown = {
        "id": item.id or new_id("rs"),
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": each.text} for each in item.summary],
    }
    if item.content is not None:
        shown["content"] = [{"type": "reasoning_text", "text": each.text} for each in item.content]
    if item.encrypted_content is not None:
        shown["encrypted_content"] = item.encrypted_content
    thought = "\n".join(said)
    return Item(kind="thought", role="assistant", at=at, shown=shown, thought=thought)


def _check_caller(item: CallItem | OutputItem, at: Sent) -> None:
    """Refuse what belongs to tools that the server would run."""
    caller = decoded_part(item.caller, Any, at.at("caller"))
    if caller not in (None, DIRECT_CALLER):
        raise UnsupportedParameter(
            "'caller' is not supported: calls are made by the model itself.", at=at.at("caller")
        )


def _text(content: str | list[Raw], at: Sent) -> str:
    """The text of a content that has parts of text only."""
    if isinstance(content, str):
        return content
    texts = []
    for raw, kind, place in typed_parts(content, at, "content part"):
        if kind == "refusal":
            texts.append(decoded_part(raw, RefusalPart, place).refusal)
        elif kind in TEXT_PARTS:
            texts.append(decoded_part(raw, TextPart, place).text)
        else:
            raise not_text(kind, place)
    return "".join(texts)


# Messages


def messages_of(instructions: str | None, items: Sequence[Item]) -> Placed:
    """The messages of a prompt.

    An assistant's thought, text and calls that follow each other are one message, and so are the
    instructions and system messages at the beginning: many templates know one of each only.
    """
    placed: Placed = []
    if instructions:
        placed.append((ChatMessage(role="system", content=instructions), Sent("instructions")))
    names = {item.call.id: item.call.name for item in items if item.call is not None}
    turn: list[Item] = []

    def end_turn() -> None:
        if turn:
            placed.append((_turn(turn), turn[0].at))
            turn.clear()

    for item in items:
        if item.role == "assistant":
            if turn and not _goes_on(turn[-1], item):
                end_turn()
            turn.append(item)
            continue
        end_turn()
        if item.role == "tool":
            called = names.get(item.call_id or "")
            message = ChatMessage(
                role="tool", content=item.text, tool_call_id=item.call_id, name=called
            )
        elif item.role == "system" and placed and placed[-1][0].role == "system":
            before, at = placed.pop()
            placed.append((ChatMessage(role="system", content=f"{before.text}\n\n{item.text}"), at))
            continue
        else:
            message = ChatMessage(role=item.role, content=item.text)
        placed.append((message, item.at))
    end_turn()
    return placed


def _goes_on(before: Item, item: Item) -> bool:
    """Whether an assistant's item belongs to the message of the one before."""
    order = {"thought": 0, "message": 1, "call": 2}
    return order[before.kind] < order[item.kind] or before.kind == item.kind == "call"


def _turn(items: Sequence[Item]) -> ChatMessage:
    """An assistant's message."""
    return ChatMessage(
        role="assistant",
        content="".join(item.text for item in items),
        reasoning="\n".join(item.thought for item in items if item.thought),
        tool_calls=tuple(item.call for item in items if item.call is not None),
    )
