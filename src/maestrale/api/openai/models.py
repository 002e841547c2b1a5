"""GET /v1/models and /v1/models/{id}: what is served, under each of its names."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maestrale.api.backend import Backend
from maestrale.chat.service import ChatService


def routes(backend: Backend) -> list[Route]:
    async def list_models(request: Request) -> Response:
        service = await backend.service()
        cards = [card(backend, service, name) for name in backend.names]
        return JSONResponse({"object": "list", "data": cards})

    async def get_model(request: Request) -> Response:
        service = await backend.service()
        name = request.path_params["model_id"]
        backend.check_model(name)
        return JSONResponse(card(backend, service, name))

    return [
        route
        for base in ("/v1/models", "/models")
        for route in (
            Route(base, list_models, methods=["GET"]),
            Route(base + "/{model_id:path}", get_model, methods=["GET"]),
        )
    ]


def card(backend: Backend, service: ChatService, name: str) -> dict[str, Any]:
    """One model as OpenAI's, Mistral's and vLLM's clients read it."""
    length, form = service.context_length, service.encoder.tool_format
    return {
        "id": name,
        "object": "model",
        "created": backend.created,
        "owned_by": "maestrale",
        "root": backend.names[0],
        "parent": None,
        "permission": [],
        "max_model_len": length,
        "type": "base",
        "name": name,
        "aliases": [other for other in backend.names if other != name],
        "max_context_length": length,
        "default_model_temperature": backend.sampling.temperature,
        "capabilities": {
            "completion_chat": True,
            "completion_fim": False,
            "function_calling": form is not None,
            "fine_tuning": False,
            "vision": False,
        },
        # Ours: how the model writes calls; generic where its prompts know no tools.
        "tool_call_format": None if form is None else form.name,
    }
