"""Streams that another process makes, as they are asked for at its private socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api_app import CHAT, Api, chat_body
from durable_api import ONCE, SLOW, durable, events_of, rest
from maestrale.api.durable.lenders import Lenders
from maestrale.api.durable.lending import LentStreams

pytestmark = pytest.mark.anyio
NEW = {**SLOW, "text": "Another answer, by another engine", "fingerprint": "new"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def streams_of(server: Api) -> Any:
    return server.backend.streams


@contextlib.asynccontextmanager
async def taken_over(tmp_path: Path) -> AsyncIterator[tuple[Api, Api, LentStreams]]:
    """The old server and the new one, with one ledger."""
    file, folder = tmp_path / "responses.db", tmp_path / "lent"
    folder.mkdir()
    async with durable(file, {**SLOW, "fingerprint": "old"}) as old, durable(file, NEW) as new:
        lent = LentStreams(streams_of(old), folder / "api.sock")
        await lent.start()
        streams_of(new).lenders = Lenders([str(folder)])
        yield old, new, lent
        await lent.end()


async def begin(server: Api, **headers: str) -> tuple[asyncio.Task[Any], Any]:
    """A stream that is under way."""
    streams = streams_of(server)
    body = {**chat_body(), "stream": True}
    asked = asyncio.create_task(server.client.post(CHAT, json=body, headers=headers))
    async with asyncio.timeout(30):
        while not any(run.parts for run in streams._tasks):
            await asyncio.sleep(0.005)
    return asked, next(iter(streams._tasks))


async def test_it_is_the_old_ones_to_the_last_byte(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (old, new, _):
        asked, run = await begin(old)
        got = await rest(new, run.entry.id, 0)
        assert got.status_code == 200
        whole = await asked
        assert events_of(got.text) == events_of(whole.text)[1:]
        assert got.headers["x-stream-id"] == run.entry.id
        # At its end it is still the old one's.
        again = await rest(new, run.entry.id)
        assert events_of(again.text) == events_of(whole.text)
        past = await rest(new, run.entry.id, 999)
        assert past.status_code == 400
        assert past.json()["error"]["code"] == "past_the_end"


async def test_an_idempotency_key_is_the_old_ones(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (old, new, _):
        asked, _run = await begin(old, **ONCE)
        body = {**chat_body(), "stream": True}
        got = await new.client.post(CHAT, json=body, headers=ONCE)
        assert got.headers["idempotent-replayed"] == "true"
        assert events_of(got.text) == events_of((await asked).text)
        other = await new.client.post(CHAT, json={**body, "max_tokens": 1}, headers=ONCE)
        assert other.status_code == 409


async def test_what_is_deleted_ends_there(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (old, new, _):
        asked, run = await begin(old)
        gone = await new.client.delete(f"/v1/streams/{run.entry.id}")
        assert gone.status_code == 200
        await asyncio.gather(asked, return_exceptions=True)  # its connection is cut
        assert run.ended
        assert not run.complete
        assert (await rest(new, run.entry.id)).status_code == 404
        assert (await new.client.delete(f"/v1/streams/{run.entry.id}")).status_code == 404


async def test_what_nobody_lends_is_made_here_or_refused(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (old, new, lent):
        asked, run = await begin(old)
        assert (await rest(new, "stream-unknown")).status_code == 404
        await lent.end()
        await asked
        gone = await rest(new, run.entry.id)
        assert gone.status_code == 410
        assert "another engine" in gone.json()["error"]["message"]
        asked, run = await begin(new)
        own = await asked
        assert events_of((await rest(new, run.entry.id)).text) == events_of(own.text)
