"""POST /v1/chat/completions, as OpenAI's and Mistral's."""

from __future__ import annotations

from typing import Any

from msgspec import structs
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from maestrale.api.backend import Backend
from maestrale.api.context import context_of
from maestrale.api.openai.chunks import LEAST_LOGPROB, Chunks
from maestrale.api.openai.schemas import ChatRequest, StreamOptions
from maestrale.api.sse import AnswerResponse, encode, while_connected
from maestrale.chat.answer import Answer, LogprobEntry, Options, Piece
from maestrale.chat.service import ChatService
from maestrale.errors import InvalidRequest
from maestrale.prompt.messages import ToolCall


def routes(backend: Backend) -> list[Route]:
    async def chat_completions(request: Request) -> ASGIApp:
        service = await backend.service()
        body = await backend.bodies.read(request.scope, request.receive, ChatRequest)
        model = backend.check_model(body.model)
        context_of(request.scope).model = model
        options = body.chat_options(backend.settings.max_n, backend.sampling)
        _check_auto(options, backend.settings.enable_auto_tool_choice)
        key = context_of(request.scope).key
        options = structs.replace(options, key=key)
        await backend.check_room(key, options.n, service.info.max_num_seqs)
        messages = body.chat_messages()
        preparing = service.chat(messages, options, prefix=body.has_prefix())
        answer = await while_connected(request.receive, preparing)
        shape = ChatShape(service, answer, model, body.stream_options)
        return AnswerResponse(backend, answer, shape, stream=bool(body.stream))

    # Some clients' base has no /v1.
    paths = ("/v1/chat/completions", "/chat/completions")
    return [Route(path, chat_completions, methods=["POST"]) for path in paths]


def _check_auto(options: Options, enabled: bool) -> None:
    """Raises: InvalidRequest when the model would choose and the operator said it may not."""
    if options.tools is not None and not options.tools.required and not enabled:
        raise InvalidRequest(
            "This server was started with --no-enable-auto-tool-choice: tools are called only "
            "with 'tool_choice' 'required', or naming a tool.",
            param="tool_choice",
        )


class ChatShape(Chunks):
    """Spells an answer as a chat completion."""

    object_name = "chat.completion.chunk"

    def __init__(
        self, service: ChatService, answer: Answer, model: str, options: StreamOptions | None
    ) -> None:
        super().__init__(service, answer, model, options)
        # Nearly every event differs in its text only: the rest is encoded once.
        head = b"data: " + encode(self._frame)[:-1] + b',"choices":[{"index":'
        self._heads = [
            head + str(index).encode() + b',"delta":{"content":'
            for index in range(len(answer.requests))
        ]
        self._tail = b'},"logprobs":null,"finish_reason":null}]'
        self._tail += b',"usage":null}\n\n' if self._include_usage else b"}\n\n"
        self._begun: set[int] = set()
        self._called = [0] * len(answer.requests)  # calls sent of each choice

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        asked = any(request.logprobs is not None for request in self._answer.requests)
        return {
            **self._frame,
            "object": "chat.completion",
            "choices": [
                {
                    "index": piece.index,
                    "message": {
                        "role": "assistant",
                        "content": piece.text or (None if piece.calls else ""),
                        "refusal": None,
                        "tool_calls": [_call(call) for call in piece.calls] or None,
                    },
                    "logprobs": self._logprobs(piece.logprobs, of_all=asked),
                    "finish_reason": piece.finish_reason,
                }
                for piece in pieces
            ],
            "usage": self._answer.usage.body(),
            **self._of_prompt(),
        }

    def _of_prompt(self) -> dict[str, Any]:
        if self._answer.options.prompt_logprobs is None:
            return {}
        return {"prompt_logprobs": self._prompt_logprobs(0)}

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        index = piece.index
        plain = piece.finish_reason is None and not piece.logprobs and not piece.calls
        if plain and index in self._begun and not self._continuous:
            return self._heads[index] + encode(piece.text) + self._tail
        delta: dict[str, Any] = {}
        if index not in self._begun:
            self._begun.add(index)
            delta["role"] = "assistant"
            delta["content"] = piece.text
        elif piece.text:
            delta["content"] = piece.text
        if piece.calls:  # each whole: clients disagree on how to join parts
            first = self._called[index]
            self._called[index] += len(piece.calls)
            delta["tool_calls"] = [
                {"index": first + place, **_call(call)} for place, call in enumerate(piece.calls)
            ]
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish_reason,
        }
        return self._chunk(choice, is_last=is_last)

    def _logprobs(
        self, entries: list[LogprobEntry], *, of_all: bool = False
    ) -> dict[str, Any] | None:
        """None where there is nothing to tell; an answer without a token has an empty list."""
        if not entries and not of_all:
            return None
        content = []
        for entry in entries:
            top = [self._token(token_id, logprob) for token_id, logprob in entry.top]
            content.append({**self._token(entry.token_id, entry.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        text, raw = self._service.spell(token_id)
        value = max(logprob or 0.0, LEAST_LOGPROB)
        return {"token": text, "logprob": value, "bytes": list(raw), "token_id": token_id}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
