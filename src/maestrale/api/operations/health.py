"""Is it there, is it ready, how is it doing: /health /ping /version /load /metrics."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from maestrale import __version__
from maestrale.api.admission import RETRY_AFTER
from maestrale.api.backend import Backend
from maestrale.api.deployment import READY_STATES


def routes(backend: Backend) -> list[Route]:
    async def health(request: Request) -> Response:
        state = await backend.health()
        body = {"status": state.state, "detail": state.detail}
        if state.state in READY_STATES:
            return JSONResponse(body)
        return JSONResponse(body, status_code=503, headers={"retry-after": str(RETRY_AFTER)})

    async def version(request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def load(request: Request) -> Response:
        body = await backend.ask_all("load") or load_json(backend)
        return Response(body, media_type="application/json")

    async def metrics(request: Request) -> Response:
        body = await backend.ask_all("metrics") or backend.metrics.render()
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    return [
        Route("/health", health, methods=["GET"]),
        Route("/ping", health, methods=["GET", "POST"]),
        Route("/version", version, methods=["GET"]),
        Route("/load", load, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


def load_json(backend: Backend) -> bytes:
    """The body of /load."""
    return msgspec.json.encode({"server_load": backend.requests})
