"""What the events of every streamed answer share: their frame, and where the usage goes."""

from __future__ import annotations

from typing import Any

from maestrale.answer import Answer
from maestrale.api.sse import encode
from maestrale.chat import ChatService


class Chunks:
    """The common part of ChatShape and CompletionShape.

    `include_usage`: None puts the usage on the chunk that ends the answer (Mistral's way),
    True on a chunk of its own (OpenAI's), False nowhere.
    """

    object_name: str

    def __init__(
        self, service: ChatService, answer: Answer, model: str, *, include_usage: bool | None
    ) -> None:
        self._service = service
        self._answer = answer
        self._include_usage = include_usage
        self._frame: dict[str, Any] = {
            "id": answer.id,
            "object": self.object_name,
            "created": answer.created,
            "model": model,
            "system_fingerprint": service.info.fingerprint,
        }

    def closing(self) -> bytes:
        if not self._include_usage:
            return b""
        chunk = {**self._frame, "choices": [], "usage": self._answer.usage.body()}
        return b"data: " + encode(chunk) + b"\n\n"

    def _chunk(self, choice: dict[str, Any], *, is_last: bool) -> bytes:
        chunk: dict[str, Any] = {**self._frame, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        elif self._include_usage is None and is_last:
            chunk["usage"] = self._answer.usage.body()
        return b"data: " + encode(chunk) + b"\n\n"
