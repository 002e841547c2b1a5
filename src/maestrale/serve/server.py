"""All of `maestrale serve`: what is put together, and what the terminal shows."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from maestrale import logs
from maestrale.api.backend import Backend
from maestrale.api.deployment import Deployments
from maestrale.api.http.connections import raise_file_limit
from maestrale.config.addresses import is_loopback
from maestrale.config.paths import default_key_file
from maestrale.config.settings import Settings
from maestrale.durable.database import CannotKeep
from maestrale.durable.ledger import Ledger
from maestrale.engines.base import Task
from maestrale.errors import SettingsError
from maestrale.keys import KeyStore, kept_key, new_key
from maestrale.logs import LOGGER
from maestrale.serve.front import Front, loads_on_demand
from maestrale.serve.handover import systemd
from maestrale.serve.handover.predecessors import Predecessors
from maestrale.serve.handover.program import Program
from maestrale.serve.handover.upgrade import Upgrade
from maestrale.serve.lifecycle import Lifecycle
from maestrale.serve.listening import listen_at, server_url
from maestrale.serve.memory import return_large_buffers

Announce = Callable[[str, str], None]


def print_banner(url: str, text: str) -> None:
    """On stdout; a reader that is gone stops no server."""
    try:
        print(text, flush=True)
    except OSError as error:
        LOGGER.warning("The banner could not be shown: %s.", error.strerror)
        sys.stdout = None  # what it still holds would be written again at the end


def run(
    settings: Settings,
    announce: Announce = print_banner,
    *,
    models: Sequence[Settings] = (),
    program: Program | None = None,
    predecessors: Predecessors | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; answers in flight then have `settings.grace` to finish.

    `announce` is told the URL and the banner once requests can be answered. `models`: the server's
    settings with what each of several models has of its own; by default the one of `settings`.
    `program`: where another server may take over from this one. `predecessors`: those that this one
    takes over from.
    Raises: SettingsError, ModelError, EngineError with a message for the terminal.
    """
    logs.configure(settings.log_level, settings.log_format)
    settings = dataclasses.replace(
        settings, key_file=key_file(settings), usage_file=usage_file(settings)
    )
    check_ledger(settings)
    made_key = key_to_make(settings)
    if made_key and predecessors is not None:
        made_key = predecessors.hello.api_key or made_key
    if made_key:
        settings = dataclasses.replace(settings, api_key=(made_key,))
    raise_file_limit()
    return_large_buffers()
    with ExitStack() as listening, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        given = systemd.kept() if predecessors is None else predecessors.listeners
        socks = [listening.enter_context(each) for each in listen_at(settings, given)]
        systemd.keep(socks)
        url = server_url(settings, socks[0])

        def tell(deployments: Deployments) -> None:
            task = deployments.default.task
            announce(url, banner(settings, url, deployments.names, made_key, task=task))

        several = models or (settings,)
        runner.run(_serve(settings, several, socks, tell, program, predecessors, made_key))


async def _serve(
    settings: Settings,
    models: Sequence[Settings],
    socks: Sequence[socket.socket],
    tell: Callable[[Deployments], None],
    program: Program | None,
    predecessors: Predecessors | None,
    made_key: str,
) -> None:
    if predecessors is not None:
        await predecessors.open()
        if loads_on_demand(models):  # all of them together may take so much
            await predecessors.make_room(settings.budget_bytes)
    front: Front
    if settings.api_workers > 1:
        from maestrale.serve.workers.parent import Parent

        front = Parent(settings, models, socks, predecessors)
    else:
        from maestrale.serve.in_process import InProcess

        front = InProcess(Backend(settings, models), socks, predecessors)
    shown_once = "" if settings.made_key_file else made_key
    upgrade = Upgrade(front, program, socks, predecessors=predecessors, api_key=shown_once)
    await Lifecycle(front, tell, upgrade).run()


def check_ledger(settings: Settings) -> None:
    """Raises: SettingsError where --durable can't keep what it promises to."""
    if settings.durable:
        try:
            Ledger(settings.ledger_path, most_bytes=settings.store_size).database.check()
        except CannotKeep as error:
            raise SettingsError(f"--durable: {settings.ledger_path}: {error}") from error


def key_to_make(settings: Settings) -> str:
    """The key that nobody gave and this address needs, or an empty one. Raises: SettingsError."""
    if settings.no_auth or settings.api_key or is_loopback(settings.host):
        return ""
    kept = settings.made_key_file
    # Once kept, it holds beside the keys that were added later.
    if asks_for_key(settings) and not (kept and kept.exists()):
        return ""
    return kept_key(kept) if kept else new_key()


def key_file(settings: Settings) -> Path | None:
    """The file whose keys are asked for, if any; the default one may come into being later."""
    if settings.key_file is None and not settings.no_auth:
        return default_key_file()
    return settings.key_file


def usage_file(settings: Settings) -> Path | None:
    """Where usage is counted: beside the keys, also where none is asked for."""
    if not settings.usage or settings.usage_path is not None:
        return settings.usage_path
    try:
        return default_key_file().with_name("usage.db")
    except SettingsError as error:
        LOGGER.warning("Usage is not counted, unless --usage-file names a file: %s", error)
        return None


def asks_for_key(settings: Settings) -> bool:
    """Whether there are keys from the start. Raises: SettingsError for a broken key file."""
    return KeyStore(settings.api_key, settings.key_file).required


_FIRST_REQUESTS: dict[Task, tuple[str, str]] = {
    "generate": ("chat/completions", '"messages": [{"role": "user", "content": "Hello!"}]'),
    "embed": ("embeddings", '"input": "Hello!"'),
    "rerank": ("rerank", '"query": "What do cats eat?", "documents": ["Mice.", "Stones."]'),
}


def banner(
    settings: Settings, url: str, names: tuple[str, ...], made_key: str, *, task: Task = "generate"
) -> str:
    """What the terminal shows once requests for this `task` can be answered."""
    key = made_key or ("YOUR_KEY" if asks_for_key(settings) else "")
    lines = ["", f"maestrale serves {', '.join(names)} on {url}", ""]
    if made_key:
        kept = settings.made_key_file
        lines += [f"API key ({f'kept in {kept}' if kept else 'shown this once'}): {made_key}", ""]
    if settings.no_auth and not is_loopback(settings.host):
        lines += ["Anyone who can reach this address can use it: --no-auth was given.", ""]
    path, asked = _FIRST_REQUESTS[task]
    lines.append(f"  curl {url}/v1/{path} \\")
    if key:
        lines.append(f"    -H 'Authorization: Bearer {key}' \\")
    lines += [
        "    -H 'Content-Type: application/json' \\",
        f'    -d \'{{"model": "{names[0]}", {asked}}}\'',
        "",
        f"Chat: {url}/    Status: {url}/status" if task == "generate" else f"Status: {url}/status",
        f"API reference: {url}/docs    Stop: Ctrl-C",
        "",
    ]
    return "\n".join(lines)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
