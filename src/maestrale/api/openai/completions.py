"""POST /v1/completions: plain text or token ids go on, without a chat template."""

from __future__ import annotations

from typing import Any

from msgspec import structs
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from maestrale.api.backend import Backend
from maestrale.api.context import context_of
from maestrale.api.openai.chunks import LEAST_LOGPROB, Chunks
from maestrale.api.openai.schemas import CompletionRequest, StreamOptions
from maestrale.api.sse import AnswerResponse, while_connected
from maestrale.chat.answer import Answer, LogprobEntry, Piece
from maestrale.chat.service import ChatService


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
        best = (body.n or 1) if body.chooses else None
        shape = CompletionShape(service, answer, model, body.stream_options, body.logprobs, best)
        return AnswerResponse(backend, answer, shape, stream=bool(body.stream))

    paths = ("/v1/completions", "/completions")
    return [Route(path, completions, methods=["POST"]) for path in paths]


class CompletionShape(Chunks):
    """Spells an answer as a text completion."""

    object_name = "text_completion"

    def __init__(
        self,
        service: ChatService,
        answer: Answer,
        model: str,
        options: StreamOptions | None,
        logprobs: int | None,
        best: int | None,
    ) -> None:
        """`logprobs`: as asked for. `best`: so many choices of each prompt are given."""
        super().__init__(service, answer, model, options)
        self._asked = logprobs is not None
        self._best = best

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for piece in self._chosen(pieces):
            choice = self._choice(piece, of_all=True)
            if self._answer.options.prompt_logprobs is not None:
                choice["prompt_logprobs"] = self._prompt_logprobs(piece.index)
            choices.append({**choice, "index": len(choices)})
        return {**self._frame, "choices": choices, "usage": self._answer.usage.body()}

    def _chosen(self, pieces: list[Piece]) -> list[Piece]:
        """Those with the highest log-probability a token, the best of each prompt first."""
        if self._best is None:
            return pieces
        of_each = self._answer.options.n
        chosen = []
        for first in range(0, len(pieces), of_each):
            group = pieces[first : first + of_each]
            group.sort(key=self._likelihood, reverse=True)
            chosen += group[: self._best]
        return chosen

    def _likelihood(self, piece: Piece) -> float:
        # What an echo repeats is the same in all.
        values = [entry.logprob for entry in piece.logprobs if entry.logprob is not None]
        return sum(values) / len(values) if values else 0.0

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        return self._chunk(self._choice(piece), is_last=is_last)

    def _choice(self, piece: Piece, *, of_all: bool = False) -> dict[str, Any]:
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": self._logprobs(piece.logprobs, of_all=of_all),
            "finish_reason": piece.finish_reason,
        }

    def _logprobs(
        self, entries: list[LogprobEntry], *, of_all: bool = False
    ) -> dict[str, Any] | None:
        """None where there is nothing to tell; an answer without a token has empty lists."""
        if not self._asked or not (entries or of_all):
            return None
        return {
            "tokens": [self._service.spell(entry.token_id)[0] for entry in entries],
            "token_logprobs": [_shown(entry.logprob) for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": [entry.text_offset for entry in entries],
        }

    def _top(self, entry: LogprobEntry) -> dict[str, float | None] | None:
        """By text, most likely first; the token itself is always among them."""
        if entry.logprob is None:
            return None
        top: dict[str, float | None] = {}
        for token, value in (*entry.top, (entry.token_id, entry.logprob)):
            top.setdefault(self._service.spell(token)[0], _shown(value))
        return top


def _shown(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
