"""OpenAI's words, with Mistral's and vLLM's beside them: what their clients send and read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from starlette.routing import Route

from maestrale.api.backend import Backend
from maestrale.api.dialect import Dialect, Operation, Reference
from maestrale.api.openai.embeddings import OTHER_WAYS, EmbeddingRequest, embedding_routes
from maestrale.api.openai.foreign_fields import (
    IGNORED_FIELDS,
    OPTIONS_IGNORED,
    OPTIONS_UNSUPPORTED,
    UNSUPPORTED_FIELDS,
)
from maestrale.api.openai.other_names import MEANINGS
from maestrale.api.openai.rerank import OTHER_WAYS as OTHER_RANKINGS
from maestrale.api.openai.rerank import RerankRequest, rerank_routes
from maestrale.api.openai.routes import answer_routes, model_routes, token_routes
from maestrale.api.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    FimRequest,
    TokenizeRequest,
)
from maestrale.api.rate import Level, tightest
from maestrale.errors import (
    ApiError,
    AuthenticationFailed,
    IdempotencyConflict,
    Location,
    PermissionDenied,
    RateLimited,
    Sent,
)

REFERENCE = Reference(
    operations=(
        Operation(
            "post",
            "/v1/chat/completions",
            "Answer a conversation, whole or as a stream.",
            ChatRequest,
        ),
        Operation(
            "post", "/v1/completions", "Continue plain text or token ids.", CompletionRequest
        ),
        Operation(
            "post",
            "/v1/fim/completions",
            "Fill in what stands between prompt and suffix, in the shape of a chat completion.",
            FimRequest,
        ),
        Operation(
            "post",
            "/v1/embeddings",
            "A vector for each text, by an embedding model.",
            EmbeddingRequest,
        ),
        Operation(
            "post",
            "/v1/rerank",
            "Documents by how well they answer a query, by a reranker.",
            RerankRequest,
        ),
        Operation("get", "/v1/models", "What is served, under each of its names, and its state."),
        Operation("get", "/v1/models/{model_id}", "One model; slashes in the id are fine."),
        Operation("post", "/v1/models/{model_id}/load", "Load a model, with an operator's key."),
        Operation("post", "/v1/models/{model_id}/unload", "Unload an idle model, likewise."),
        Operation(
            "post", "/tokenize", "The token ids of a prompt or of messages.", TokenizeRequest
        ),
        Operation("post", "/detokenize", "The text of token ids.", DetokenizeRequest),
        Operation(
            "get", "/tokenizer_info", "The tokenizer's names for begin and end, its template."
        ),
    ),
    error_schema={
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": (
                    fields := {
                        "message": {"type": "string"},
                        "type": {"type": "string"},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    }
                ),
                "required": list(fields),
            },
            **fields,
        },
        "required": ["error"],
    },
    notes={
        "Other servers' names of what exists here": MEANINGS,
        "Accepted, and without effect": IGNORED_FIELDS,
        "Refused, but where they ask for what is done anyway": UNSUPPORTED_FIELDS,
        "In Ollama's options, accepted and without effect": OPTIONS_IGNORED,
        "In Ollama's options, refused but where they ask for what is done anyway": (
            OPTIONS_UNSUPPORTED
        ),
        "Other servers' words, refused in embeddings": OTHER_WAYS,
        "Other servers' words, refused in rankings": OTHER_RANKINGS,
    },
)
TYPES: dict[type[ApiError], str] = {
    AuthenticationFailed: "authentication_error",
    PermissionDenied: "permission_error",
    RateLimited: "rate_limit_error",
    IdempotencyConflict: "idempotency_error",
}
"""OpenAI's type of an error; of others the status decides."""


class OpenAI(Dialect):
    """OpenAI's dialect. It is spoken wherever no other is."""

    paths: ClassVar[tuple[str, ...]] = ("/",)
    exposed_headers = (
        *(
            f"x-ratelimit-{what}-{of}{window}"
            for window in ("", "-day", "-month")
            for of in ("requests", "tokens")
            for what in ("limit", "remaining", "reset")
        ),
        "x-ratelimit-reserved-tokens",
    )

    def routes(self, backend: Backend) -> list[Route]:
        return [
            *answer_routes(backend),
            *embedding_routes(backend),
            *rerank_routes(backend),
            *model_routes(backend),
            *token_routes(backend),
        ]

    def locate(self, location: Location) -> Sent:
        match location:
            case ("constraint", *rest):
                return Sent("response_format", *rest)
            case ("logprobs",):
                return Sent("top_logprobs")
            case ("tools", int(index), *rest):
                return Sent("tools", index, "function", *rest)
            case _:
                return Sent(*location)

    def error(
        self, error: ApiError, message: str, at: str | None, request_id: str
    ) -> dict[str, Any]:
        """OpenAI's `error` object, and Mistral's flat fields beside it."""
        fallback = "server_error" if error.status >= 500 else "invalid_request_error"
        fields = {
            "message": message,
            "type": TYPES.get(type(error), fallback),
            "param": at,
            "code": error.code,
        }
        return {"error": fields, "object": "error", **fields}

    def headers(self, request_id: str, levels: Sequence[Level]) -> dict[str, str]:
        headers: dict[str, str] = {}
        for level in levels:
            if level.window != "minute":
                headers |= _headers(level, f"{level.what}-{level.window}")
            if level.reserved is not None:
                headers[f"x-ratelimit-reserved-{level.what}"] = str(level.reserved)
        for level in tightest(levels):
            headers |= _headers(level, level.what)
        return headers

    def reference(self) -> Reference:
        return REFERENCE


def _headers(level: Level, name: str) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(level.limit),
        f"x-ratelimit-remaining-{name}": str(level.remaining),
        f"x-ratelimit-reset-{name}": span(level.full_in),
    }


def span(seconds: float) -> str:
    """As OpenAI writes it: 870ms, 12.5s, 1m0s, 5h12m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{rest:g}s"
