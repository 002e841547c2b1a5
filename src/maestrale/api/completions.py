"""POST /v1/completions: plain text or token ids go on, without a chat template."""

from __future__ import annotations

from typing import Any

from msgspec import structs
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from maestrale.answer import LogprobEntry, Piece
from maestrale.api.backend import Backend
from maestrale.api.chunks import Chunks
from maestrale.api.context import context_of
from maestrale.api.schemas import CompletionRequest
from maestrale.api.sse import AnswerResponse, while_connected


def routes(backend: Backend) -> list[Route]:
    async def completions(request: Request) -> ASGIApp:
        service = await backend.service()
        body = await backend.bodies.read(request.scope, request.receive, CompletionRequest)
        model = backend.check_model(body.model)
        context_of(request.scope).model = model
        options = body.completion_options(backend.settings.max_n, backend.sampling)
        key = context_of(request.scope).key
        await backend.check_room(key, options.n * len(body.prompts()), service.info.max_num_seqs)
        options = structs.replace(options, key=key)
        preparing = service.complete(body.prompts(), options)
        answer = await while_connected(request.receive, preparing)
        usage = body.stream_options.include_usage if body.stream_options else None
        shape = CompletionShape(service, answer, model, include_usage=usage)
        return AnswerResponse(backend, answer, shape, stream=bool(body.stream))

    return [Route("/v1/completions", completions, methods=["POST"])]


class CompletionShape(Chunks):
    """Spells an answer as a text completion."""

    object_name = "text_completion"

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        choices = [self._choice(piece) for piece in pieces]
        return {**self._frame, "choices": choices, "usage": self._answer.usage.body()}

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        return self._chunk(self._choice(piece), is_last=is_last)

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
