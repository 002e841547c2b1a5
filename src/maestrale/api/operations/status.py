"""GET /status.json: what the status page shows, from the server's own metrics."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from maestrale import __version__
from maestrale.api.backend import Backend
from maestrale.api.deployment import Deployment
from maestrale.engines.base import replicas_of

TOTALS = (
    *("prompt_tokens", "generation_tokens", "preemptions", "prefix_cache_queries"),
    *("prefix_cache_hits", "restarts", "replayed"),
)


def routes(backend: Backend) -> list[Route]:
    async def status(request: Request) -> Response:
        name = request.query_params.get("model")
        deployment = backend.deployments.resolve(name)
        body = await backend.ask_all("status", deployment.id)
        body = body or await status_json(backend, deployment)
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    return [Route("/status.json", status, methods=["GET"])]


async def status_json(backend: Backend, deployment: Deployment) -> bytes:
    """The body of /status.json."""
    return msgspec.json.encode(await snapshot(backend, deployment))


async def snapshot(backend: Backend, deployment: Deployment) -> dict[str, Any]:
    """All of it; what is of one model is of `deployment`.

    `engine`, `now` and `totals` are null while there is no engine.
    """
    health = await deployment.health()
    history = deployment.history
    return {
        "state": health.state,
        "detail": health.detail,
        "version": __version__,
        "models": list(backend.deployments.names),
        "time": round(time.time(), 1),
        "uptime_seconds": round(time.monotonic() - backend.started),
        "engine": _engine(deployment),
        "now": _now(deployment),
        "totals": _totals(deployment),
        "deployments": [await _brief(each) for each in backend.deployments],
        "api_processes": backend.processes(),
        "api_nodes": [msgspec.structs.asdict(each) for each in backend.node_status()],
        "replicas": _replicas(deployment),
        "latency": history.latency(),
        "series": history.series(),
        "events": [dataclasses.asdict(event) for event in backend.events],
    }


async def _brief(deployment: Deployment) -> dict[str, Any]:
    """One deployment among the others; `/status.json?model=NAME` has all of it."""
    health = await deployment.health()
    return {
        "id": deployment.id,
        "names": list(deployment.names),
        "source": deployment.settings.model,
        "state": health.state,
        "detail": health.detail,
        "pinned": deployment.pinned,
        "memory_bytes": deployment.memory,
        "last_used": round(deployment.last_used) or None,
        "now": _now(deployment),
        "totals": _totals(deployment),
    }


def _engine(deployment: Deployment) -> dict[str, Any] | None:
    engine = deployment.engine
    if engine is None:
        return None
    info = engine.describe()
    return {
        "name": info.engine,
        "version": info.version,
        "fingerprint": info.fingerprint,
        "context_tokens": min(info.max_model_len, info.kv_capacity_tokens),
        "kv_capacity_tokens": info.kv_capacity_tokens,
        "max_num_seqs": info.max_num_seqs,
        "deterministic": "deterministic" in info.features,
    }


def _replicas(deployment: Deployment) -> list[dict[str, Any]]:
    """Each engine behind the engine: where it runs, and what it does."""
    return [
        {
            "name": each.name,
            "state": each.state,
            "host": each.host,
            "node": each.node,
            "pid": each.pid,
            "engine_pid": each.engine_pid,
            "fingerprint": each.fingerprint,
            "running": each.stats.running,
            "waiting": each.stats.waiting,
            "kv_cache_usage": round(each.stats.kv_cache_usage, 4),
            "prompt_tokens": each.stats.prompt_tokens,
            "generation_tokens": each.stats.generation_tokens,
            "prefix_cache_hits": each.stats.prefix_cache_hits,
            "prefix_cache_queries": each.stats.prefix_cache_queries,
        }
        for each in replicas_of(deployment.engine)
    ]


def _now(deployment: Deployment) -> dict[str, Any] | None:
    engine = deployment.engine
    if engine is None:
        return None
    stats = engine.stats()
    newest = deployment.history.newest()
    return {
        "running": stats.running,
        "waiting": stats.waiting + deployment.admission.waiting,
        "kv_cache_usage": round(stats.kv_cache_usage, 4),
        "prompt_tokens_per_second": round(newest.prompt_rate, 1) if newest else 0.0,
        "generation_tokens_per_second": round(newest.generation_rate, 1) if newest else 0.0,
    }


def _totals(deployment: Deployment) -> dict[str, int] | None:
    engine = deployment.engine
    if engine is None:
        return None
    stats = engine.stats()
    return {name: getattr(stats, name) for name in TOTALS}
