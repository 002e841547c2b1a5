"""doctor's findings about the server on this machine: its processes, other nodes and replicas."""

from __future__ import annotations

from typing import Any

from maestrale.bounded import Oversized, Undecodable
from maestrale.cli.server_status import read_status
from maestrale.config.settings import Settings
from maestrale.machine.doctor.findings import Finding
from maestrale.printable import one_line

TIMEOUT = 3.0
_LOG = "Look at the server's log; it says why."


def server_findings(settings: Settings, local: bool) -> list[Finding]:
    """None where no maestrale answers at the port; else the server, its nodes and its replicas.

    Another machine's server is not asked: its own doctor does that.
    """
    if not local:
        return []
    status = _status(settings)
    if isinstance(status, Finding):
        return [status]
    if status is None:
        return []
    try:
        nodes, replicas = status.get("api_nodes", []), status.get("replicas", [])
        return [_server(status, settings.port), *map(_node, nodes), *map(_replica, replicas)]
    except (LookupError, TypeError, AttributeError):  # another program's page of that name
        return []


def _status(settings: Settings) -> dict[str, Any] | Finding | None:
    import httpx

    key = settings.api_key[0] if settings.api_key else None
    try:
        code, body = read_status(f"http://127.0.0.1:{settings.port}", key, timeout=TIMEOUT)
    except (httpx.HTTPError, ValueError, RecursionError, Oversized, Undecodable):
        return None
    if code == 401:
        return Finding(
            "server",
            "ok",
            f"The server on port {settings.port} asks for a key; with MAESTRALE_API_KEY "
            "set doctor tells what it runs.",
        )
    ours = code == 200 and isinstance(body, dict) and "api_processes" in body
    return body if ours else None


def _server(status: dict[str, Any], port: int) -> Finding:
    state, now = status["state"], status.get("now") or {}
    names = ", ".join(status.get("models", [])) or "no model yet"
    what = f"maestrale on port {port}: {names}; {state}"
    if now:
        what += f"; {now['running']} running, {now['waiting']} waiting"
    if len(status["api_processes"]) > 1:
        what += f"; {len(status['api_processes'])} API processes"
    what = one_line(f"{what}.")
    if state == "dead":
        return Finding("server", "problem", what, _LOG)
    if state == "degraded":
        return Finding("server", "warning", what, "Its engine is being replaced: wait a moment.")
    return Finding("server", "ok", what)


def _node(each: dict[str, Any]) -> Finding:
    where = f" ({each['host']})" if each["host"] else ""
    what = f"API process on {each['address']}{where}: {each['state']}"
    if each["url"]:
        what += f", answers at {each['url']}"
    if each["restarts"]:
        what += f", started anew {each['restarts']} times"
    what = one_line(f"{what}. {each['detail']}".rstrip())
    if each["state"] == "failed":
        return Finding(
            "api node", "problem", what, "Mend that, then start the node or this server anew."
        )
    if each["state"] == "restarting":
        return Finding("api node", "warning", what, f"It is started anew. If it stays: {_LOG}")
    return Finding("api node", "ok", what)


def _replica(each: dict[str, Any]) -> Finding:
    where = f" on {each['host']}" if each["host"] else ""
    what = one_line(
        f"{each['name']}{where}: {each['state']}, {each['running']} running, "
        f"{each['waiting']} waiting, {each['generation_tokens']} tokens so far."
    )
    if each["state"] == "lost":
        return Finding("replica", "warning", what, f"Ray Serve replaces it. If it stays: {_LOG}")
    return Finding("replica", "ok", what)
