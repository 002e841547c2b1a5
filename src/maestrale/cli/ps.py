"""`maestrale ps`: which models a running server has, and what each does."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from maestrale.bounded import Oversized, Undecodable
from maestrale.cli.api_key import api_key_options
from maestrale.cli.chat import DEFAULT_URL
from maestrale.cli.echo import echo
from maestrale.cli.server_status import read_status
from maestrale.errors import MaestraleError
from maestrale.printable import one_line

TIMEOUT = 5.0


@click.command("ps")
@click.argument("url", default=DEFAULT_URL)
@api_key_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(url: str, api_key: str | None, as_json: bool) -> None:
    """Show the models of the server at URL (default: http://127.0.0.1:8000).

    Each with its state, the memory that it takes while it is loaded, what it does now, and when
    it was asked last.
    """
    found = models_of(url, api_key)
    if as_json:
        echo(json.dumps(found))
        return
    width = max([len(name(each)) for each in found], default=0)
    for each in found:
        echo(one_line(f"{name(each):{width}}  {line(each, time.time())}"))


def name(model: dict[str, Any]) -> str:
    """What the server's clients call it."""
    return str(next(iter(model.get("names") or ()), model.get("id")))


def line(model: dict[str, Any], now: float) -> str:
    """What is shown behind a model's name."""
    memory, used = model.get("memory_bytes"), model.get("last_used")
    parts = [f"{model.get('state'):9}", f"{memory >> 20:>6,} MiB" if memory else f"{'-':>10}"]
    parts.append(f"asked {span(now - used)} ago" if used else "not asked yet")
    if model.get("pinned"):
        parts.append("pinned")
    doing = model.get("now") or {}
    for what in ("running", "waiting"):
        if doing.get(what):
            parts.append(f"{doing[what]} {what}")
    if model.get("state") != "ready" and model.get("detail"):
        parts.append(str(model["detail"]))
    return "  ".join(parts)


def span(seconds: float) -> str:
    """`3 s`, `5 min`, `2 h`, `4 d`."""
    whole = max(0, round(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def models_of(url: str, api_key: str | None) -> list[dict[str, Any]]:
    """What the server says of its models. Raises: MaestraleError."""
    import httpx

    server = url.rstrip("/").removesuffix("/v1")
    try:
        status, body = read_status(server, api_key, timeout=TIMEOUT)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise MaestraleError(
            f"No server answers at {url}: {one_line(str(error)) or type(error).__name__}. Start "
            "one with 'maestrale serve', or give its URL."
        ) from error
    except (ValueError, RecursionError, Oversized, Undecodable) as error:
        raise MaestraleError(f"What answers at {url} is no maestrale.") from error
    if status == 401:
        raise MaestraleError(f"The server at {url} asks for a key: give it with --api-key-file.")
    models = body.get("deployments") if isinstance(body, dict) else None
    if not isinstance(models, list) or not all(isinstance(each, dict) for each in models):
        raise MaestraleError(f"What answers at {url} (status {status}) is no maestrale.")
    return models
