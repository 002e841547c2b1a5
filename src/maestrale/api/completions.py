"""POST /v1/completions: plain text or token ids go on, without a chat template."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from maestrale.api.backend import Backend
from maestrale.api.context import context_of
from maestrale.api.schemas import CompletionRequest
from maestrale.api.sse import AnswerResponse, encode, while_connected
from maestrale.chat import Answer, ChatService, LogprobEntry, Piece


def routes(backend: Backend) -> list[Route]:
    async def completions(request: Request) -> ASGIApp:
        service = await backend.service()
        body = await backend.bodies.read(request.scope, request.receive, CompletionRequest)
        model = backend.check_model(body.model)
        context_of(request.scope).model = model
        options = body.completion_options(backend.settings.max_n)
        key = context_of(request.scope).key
        backend.admission.check(key, options.n * len(body.prompts()), service.info.max_num_seqs)
        preparing = service.complete(body.prompts(), options)
        answer = await while_connected(request.receive, preparing)
        usage = body.stream_options.include_usage if body.stream_options else None
        shape = CompletionShape(service, answer, model, include_usage=usage)
        return AnswerResponse(backend, answer, shape, stream=bool(body.stream))

    return [Route("/v1/completions", completions, methods=["POST"])]


class CompletionShape:
    """Spells an answer as a text completion; `include_usage` as in ChatShape."""

    def __init__(
        self, service: ChatService, answer: Answer, model: str, *, include_usage: bool | None
    ) -> None:
        self._service = service
        self._answer = answer
        self._include_usage = include_usage
        self._frame: dict[str, Any] = {
            "id": answer.id,
            "object": "text_completion",
            "created": answer.created,
            "model": model,
            "system_fingerprint": service.info.fingerprint,
        }

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        choices = [self._choice(piece) for piece in pieces]
        return {**self._frame, "choices": choices, "usage": self._answer.usage.body()}

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        chunk: dict[str, Any] = {**self._frame, "choices": [self._choice(piece)]}
        if self._include_usage:
            chunk["usage"] = None
        elif self._include_usage is None and is_last:
            chunk["usage"] = self._answer.usage.body()
        return b"data: " + encode(chunk) + b"\n\n"

    def closing(self) -> bytes:
        if not self._include_usage:
            return b""
        chunk = {**self._frame, "choices": [], "usage": self._answer.usage.body()}
        return b"data: " + encode(chunk) + b"\n\n"

    def _choice(self, piece: Piece) -> dict[str, Any]:
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish_reason,
        }

    def _logprobs(self, entries: list[LogprobEntry]) -> dict[str, Any] | None:
        if not entries:
            return None
        return {
            "tokens": [self._service.spell(entry.token_id)[0] for entry in entries],
            "token_logprobs": [max(entry.logprob, -9999.0) for entry in entries],
            "top_logprobs": [
                {self._service.spell(token)[0]: max(value, -9999.0) for token, value in entry.top}
                for entry in entries
            ],
            "text_offset": [entry.text_offset for entry in entries],
        }
