"""Answers in Anthropic's words: a message of content blocks, whole, and as its events."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import msgspec

from maestrale.chat.answer import Answer
from maestrale.chat.reader import Piece
from maestrale.chat.service import ChatService
from maestrale.prompt.messages import ToolCall

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "calls": "tool_use"}


def event(name: str, **data: Any) -> bytes:
    """A server-sent event, whose data has its name as `type`."""
    return b"event: %b\ndata: %b\n\n" % (
        name.encode(),
        msgspec.json.encode({"type": name, **data}),
    )


class MessageSpelling:
    """Spells one answer. Thoughts are one block, and text is one; each call is one."""

    def __init__(
        self, service: ChatService, answer: Answer, model: str, shows_thoughts: bool = True
    ) -> None:
        """`shows_thoughts`: else their block has nothing but a signature."""
        self.id = f"msg_{answer.id}"
        self._answer = answer
        self._model = model
        self._index = 0  # of the block that is open, or comes next
        self._shows_thoughts = shows_thoughts
        self._open = ""  # the type of the block that is open
        self._thought = hashlib.blake2b(digest_size=24)
        self._ended: dict[str, Any] = {}

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        piece = pieces[0]
        content: list[dict[str, Any]] = []
        if piece.reasoning:
            self._thought.update(piece.reasoning.encode())
            thinking = piece.reasoning if self._shows_thoughts else ""
            signed = {"signature": self._signature()}
            content.append({"type": "thinking", "thinking": thinking, **signed})
        if piece.text:
            content.append({"type": "text", "text": piece.text})
        for call in piece.calls:
            content.append({**_tool_use(call), "input": _input(call)})
        return {**self._message(content), **_ending(piece), "usage": self._usage()}

    def opening(self) -> bytes:
        ending = {"stop_reason": None, "stop_sequence": None}
        none = {"output_tokens": 0, "output_tokens_details": {"thinking_tokens": 0}}
        usage = {**self._usage(), **none}
        return event("message_start", message={**self._message([]), **ending, "usage": usage})

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        events = b""
        if piece.reasoning:
            events += self._begin("thinking", thinking="", signature="")
            self._thought.update(piece.reasoning.encode())
            if self._shows_thoughts:
                events += self._delta({"type": "thinking_delta", "thinking": piece.reasoning})
        if piece.text:
            events += self._begin("text", text="")
            events += self._delta({"type": "text_delta", "text": piece.text})
        for call in piece.calls:
            events += self._close() + self._start({**_tool_use(call), "input": {}})
            events += self._delta({"type": "input_json_delta", "partial_json": call.arguments})
            events += self._stop()
        if piece.finish_reason is not None:
            events += self._close()
            self._ended = _ending(piece)
        return events

    def closing(self) -> bytes:
        ended = event("message_delta", delta=self._ended, usage=self._usage())
        return ended + event("message_stop")

    def failure(self, body: bytes) -> bytes:
        return b"event: error\ndata: " + body + b"\n\n"

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
        }

    def _usage(self) -> dict[str, Any]:
        """Tokens from the cache are counted apart from the others of the prompt."""
        usage = self._answer.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        }

    def _start(self, block: dict[str, Any]) -> bytes:
        return event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        ended = event("content_block_stop", index=self._index)
        self._index += 1
        return ended

    def _begin(self, kind: str, **empty: str) -> bytes:
        """Open a block of this type, if it isn't open."""
        if self._open == kind:
            return b""
        closed, self._open = self._close(), kind
        return closed + self._start({"type": kind, **empty})

    def _close(self) -> bytes:
        if not self._open:
            return b""
        signed = b""
        if self._open == "thinking":
            signed = self._delta({"type": "signature_delta", "signature": self._signature()})
        self._open = ""
        return signed + self._stop()

    def _signature(self) -> str:
        """Of what was thought; clients give it back as it is."""
        return base64.b64encode(self._thought.digest()).decode()


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _input(call: ToolCall) -> dict[str, Any]:
    """The arguments; none where `max_tokens` cut them: half an object would be taken for one."""
    try:
        arguments = msgspec.json.decode(call.arguments)
    except msgspec.DecodeError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _ending(piece: Piece) -> dict[str, Any]:
    reason = piece.finish_reason
    if piece.stopped_by is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": piece.stopped_by}
    return {
        "stop_reason": None if reason is None else STOP_REASONS[reason],
        "stop_sequence": None,
    }
