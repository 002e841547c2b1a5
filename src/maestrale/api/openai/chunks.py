"""What the events of every streamed answer share: their frame, and where the usage goes."""

from __future__ import annotations

from typing import Any

from maestrale.api.openai.schemas import StreamOptions
from maestrale.api.sse import encode
from maestrale.chat.answer import Answer
from maestrale.chat.service import ChatService

LEAST_LOGPROB = -9999.0  # JSON has no minus infinity; OpenAI, too, says this for "never"


class Chunks:
    """The common part of ChatShape and CompletionShape.

    `include_usage`: None puts the usage on the chunk that ends the answer (Mistral's way),
    True on a chunk of its own (OpenAI's), False nowhere. With `continuous`, too, every chunk
    has the counts so far (vLLM's).
    """

    object_name: str

    def __init__(
        self, service: ChatService, answer: Answer, model: str, options: StreamOptions | None
    ) -> None:
        self._service = service
        self._answer = answer
        self._include_usage = options.include_usage if options is not None else None
        self._continuous = bool(
            options is not None and options.include_usage and options.continuous_usage_stats
        )
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

    def _prompt_logprobs(self, index: int) -> list[dict[str, Any] | None]:
        """vLLM's list: nothing of the prompt's first token; of each other one the likely tokens
        and itself, by id.
        """
        entries = self._answer.prompt_logprobs.get(index, ())
        listed: list[dict[str, Any] | None] = [None]
        for entry in entries:
            ranked: list[tuple[int, float, int | None]] = [
                (token, value, rank) for rank, (token, value) in enumerate(entry.top, start=1)
            ]
            if entry.token_id not in [token for token, _, _ in ranked]:
                ranked.append((entry.token_id, entry.logprob, None))
            listed.append(
                {
                    str(token): {
                        "logprob": max(value, LEAST_LOGPROB),
                        "rank": rank,
                        "decoded_token": self._service.spell(token)[0],
                    }
                    for token, value, rank in ranked
                }
            )
        return listed

    def _chunk(self, choice: dict[str, Any], *, is_last: bool) -> bytes:
        chunk: dict[str, Any] = {**self._frame, "choices": [choice]}
        if self._continuous:
            chunk["usage"] = self._answer.usage.body()
        elif self._include_usage:
            chunk["usage"] = None
        elif self._include_usage is None and is_last:
            chunk["usage"] = self._answer.usage.body()
        return b"data: " + encode(chunk) + b"\n\n"
