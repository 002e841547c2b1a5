"""The API with `--durable`, as its tests ask for it: streams, their rest, what is kept of them."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from api_app import CHAT, MODEL, Api, api, chat_body, make_settings
from responses_api import RESPONSES, WEATHER

STREAMS = "/v1/streams"
COMPLETIONS = "/v1/completions"
MESSAGES = "/v1/messages"
SLOW = {"text": "Good day to you, and to everybody else", "tokens_per_second": "40"}
ENDED = re.compile(r'"completed_at":\d+')  # is when it was made
HELLO = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, chat_body()),
    "choices": (CHAT, chat_body(n=3, temperature=1, logprobs=True, top_logprobs=2)),
    "usage": (CHAT, chat_body(messages=HELLO * 50, max_tokens=3, stop=["q"])),
    "tools": (
        CHAT,
        chat_body(
            tools=[{"type": "function", "function": {"name": "get_weather"}}],
            tool_choice="required",
        ),
    ),
    "completions": (COMPLETIONS, {"model": MODEL, "prompt": ["One", "Two"], "max_tokens": 9}),
    "responses": (RESPONSES, {"model": MODEL, "input": "Hello", "tools": [WEATHER]}),
    "messages": (MESSAGES, {"model": MODEL, "max_tokens": 30, "messages": HELLO}),
}
COUNTED = {"include_usage": True, "continuous_usage_stats": True}
STREAMED = BODIES | {"counted": (CHAT, chat_body(n=2, temperature=1, stream_options=COUNTED))}
ONCE = {"idempotency-key": "a1b2"}


def _of_another_version(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 99")


SPOILT: dict[str, Callable[[Path], None]] = {
    "another version": _of_another_version,
    "a folder": lambda file: file.mkdir(),
    "a link": lambda file: file.symlink_to("elsewhere"),
}
"""What makes of the place of a file of SQLite one that can't be used."""


def settings(file: Path, **fields: Any) -> Any:
    return make_settings(store_file=file, **{"store": True, "durable": True, **fields})


def ledger_of(file: Path) -> Path:
    return file.with_name("responses.ledger.db")


@contextlib.asynccontextmanager
async def durable(
    file: Path, script: dict[str, str] | None = None, **more: Any
) -> AsyncIterator[Api]:
    async with api(settings(file, **more), options=script or {}, tools=True) as server:
        yield server


async def stream(server: Api, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    got = await server.client.post(path, json={**body, "stream": True}, headers=headers)
    assert got.status_code == 200, got.text
    return got


async def rest(server: Api, id: str, after: int | None = None, **headers: str) -> httpx.Response:
    if after is not None:
        headers["last-event-id"] = str(after)
    return await server.client.get(f"{STREAMS}/{id}", headers=headers)


def events_of(text: str) -> list[str]:
    return [f"{block}\n\n" for block in text.split("\n\n") if block and not block.startswith(":")]


def kept(file: Path) -> list[tuple[Any, ...]]:
    path = ledger_of(file)
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path)) as db:
        if not db.execute("PRAGMA user_version").fetchone()[0]:
            return []  # it is being made
        return db.execute("SELECT id, sent, ended, output IS NOT NULL FROM answers").fetchall()
