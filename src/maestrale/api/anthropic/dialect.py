"""Anthropic's words: the Messages API, as its clients send and read it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maestrale.api.answering import answering
from maestrale.api.anthropic.reading import read_count, read_messages
from maestrale.api.anthropic.schemas import (
    CONTEXT_MANAGEMENT,
    IGNORED_FIELDS,
    IGNORED_PARTS,
    UNSUPPORTED_FIELDS,
    CountRequest,
    MessagesRequest,
)
from maestrale.api.backend import Backend
from maestrale.api.context import context_of
from maestrale.api.dialect import Dialect, Operation, Reference
from maestrale.api.durable.resumable import idempotent
from maestrale.api.rate import Level, tightest
from maestrale.errors import ApiError, Location, Sent

OVERLOADED = frozenset({"queue_full", "queue_timeout", "busy"})
"""Codes of a server that has too much to do, and not of one that isn't there."""
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "idempotency_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
FIELDS = {
    "constraint": Sent("output_config", "format", "schema"),
    "reasoning": Sent("thinking", "type"),
    "stop": Sent("stop_sequences"),
}
REFERENCE = Reference(
    operations=(
        Operation("post", "/v1/messages", "Answer messages, as Anthropic's API.", MessagesRequest),
        Operation("post", "/v1/messages/count_tokens", "How many tokens they have.", CountRequest),
    ),
    error_schema={
        "type": "object",
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
                "required": ["type", "message"],
            },
            "request_id": {"type": "string"},
        },
        "required": ["type", "error"],
    },
    notes={
        "Accepted in messages, and without effect": IGNORED_FIELDS,
        "In content blocks and tools, accepted and without effect": IGNORED_PARTS,
        "Refused in messages, unless empty": UNSUPPORTED_FIELDS,
        "Refused in messages, where they would do anything": {
            "context_management": CONTEXT_MANAGEMENT,
            "output_config.task_budget": "'max_tokens' bounds each answer",
        },
    },
)


class Anthropic(Dialect):
    """Anthropic's dialect, at /v1/messages."""

    paths = ("/v1/messages",)
    exposed_headers = ("request-id",)

    def routes(self, backend: Backend) -> list[Route]:
        async def count_tokens(request: Request) -> Response:
            await backend.check_ready()
            body = await backend.bodies.read(request.scope, request.receive, CountRequest)
            context = context_of(request.scope)
            service = await backend.find(context, body.model).service()
            conversation, options, renamed = read_count(body, service.context_length)
            context.rename(renamed)
            prompt = await service.prompt(conversation, options)
            return JSONResponse({"input_tokens": len(prompt.token_ids)})

        messages = answering(backend, MessagesRequest, read_messages)
        return [
            Route("/v1/messages", messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", idempotent(backend, count_tokens), methods=["POST"]),
        ]

    def locate(self, location: Location) -> Sent:
        match location:
            case ("tools", int(index), "parameters", *rest):
                return Sent("tools", index, "input_schema", *rest)
            case ("reasoning", "budget"):
                return Sent("thinking", "budget_tokens")
            case (str(name), *rest) if name in FIELDS:
                return FIELDS[name].at(*rest)
            case _:
                return Sent(*location)

    def spell(self, sent: Sent) -> str:
        """As in `messages.0.content`."""
        return ".".join(map(str, sent))

    def status(self, error: ApiError) -> int:
        return 529 if error.code in OVERLOADED else error.status

    def error(
        self, error: ApiError, message: str, at: str | None, request_id: str
    ) -> dict[str, Any]:
        status = self.status(error)
        fallback = "api_error" if status >= 500 else "invalid_request_error"
        told = message if at is None or f"'{at}'" in message else f"{at}: {message}"
        return {
            "type": "error",
            "error": {"type": TYPES.get(status, fallback), "message": told},
            "request_id": request_id,
        }

    def headers(self, request_id: str, levels: Sequence[Level]) -> dict[str, str]:
        headers = {"request-id": request_id}
        now = datetime.datetime.now(datetime.UTC)
        for level in tightest(levels):
            full = now + datetime.timedelta(seconds=level.full_in)
            start = f"anthropic-ratelimit-{level.what}"
            headers[f"{start}-limit"] = str(level.limit)
            headers[f"{start}-remaining"] = str(level.remaining)
            headers[f"{start}-reset"] = full.strftime("%Y-%m-%dT%H:%M:%SZ")
        return headers

    def reference(self) -> Reference:
        return REFERENCE
