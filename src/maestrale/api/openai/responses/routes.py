"""The routes of the Responses API."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from maestrale.api.answering import Serving, prepare
from maestrale.api.backend import Backend
from maestrale.api.dialect import AnswerRequest
from maestrale.api.openai.responses.items import Item, read_input
from maestrale.api.openai.responses.reading import (
    conversation_of,
    read_response,
    read_tool_use,
    template_variables,
)
from maestrale.api.openai.responses.schemas import ResponsesRequest
from maestrale.api.openai.responses.truncation import truncated
from maestrale.errors import ContextLengthExceeded

ROOTS = ("/v1", "")  # some clients' base has no /v1
LEAST_ROOM = 256  # tokens that truncation leaves for an answer whose length is open


def routes(backend: Backend) -> list[Route]:
    """All of them, with and without /v1."""

    async def create(request: Request) -> ASGIApp:
        await backend.check_ready()
        body = await backend.bodies.read(request.scope, request.receive, ResponsesRequest)
        items = read_input(body.input)
        if body.truncation == "auto":
            items = await _fitted(backend, body, items)
        read = partial(_read, body, items)
        return await prepare(backend, request, body.model, read)

    return [Route(f"{root}/responses", create, methods=["POST"]) for root in ROOTS]


def _read(body: ResponsesRequest, items: tuple[Item, ...], serving: Serving) -> AnswerRequest:
    return read_response(body, items, store=False, serving=serving)


async def _fitted(
    backend: Backend, body: ResponsesRequest, items: tuple[Item, ...]
) -> tuple[Item, ...]:
    """The items that the model's context has room for, beside the answer."""
    service = await backend.deployments.resolve(body.model).service()
    use = read_tool_use(body)
    definitions = None if use is None else use.definitions
    limit = service.context_length
    room = min(body.max_output_tokens or LEAST_ROOM, limit // 2)

    async def fits(left: Sequence[Item]) -> bool:
        try:
            prompt = await service.tokenizer.encode_chat(
                conversation_of(body, left)[0],
                tools=definitions,
                variables=template_variables(body),
            )
        except ContextLengthExceeded:
            return False
        return len(prompt.token_ids) + room <= limit

    return tuple(await truncated(items, fits))
