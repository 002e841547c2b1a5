"""A session's bookkeeping on the replica."""

from __future__ import annotations

import asyncio

import pytest

from maestrale.cluster import session as session_module
from maestrale.cluster.session import ABORTS_REMEMBERED, StreamSession, api_of
from maestrale.supervise.messages import Abort


def test_a_session_gives_all_that_came_at_once_and_wakes_its_reader() -> None:
    async def go() -> tuple[int, int, int]:
        session = StreamSession("api/1")
        session.put(Abort("a"))
        session.put(Abort("b"))
        both = await session.take(10)
        reader = asyncio.create_task(session.take(10))
        await asyncio.sleep(0)
        session.put(Abort("c"))
        return len(both), len(await reader), len(await session.take(0))

    assert asyncio.run(go()) == (2, 1, 0)


def test_closing_a_session_ends_what_it_holds_and_its_reader() -> None:
    async def go() -> None:
        session = StreamSession("api/1")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        session.held["w"] = done
        reader = asyncio.create_task(session.take(60))
        await asyncio.sleep(0)
        session.close()
        assert await reader == []
        assert done.done()

    asyncio.run(go())


def test_aborts_are_remembered_up_to_a_bound() -> None:
    async def go() -> None:
        session = StreamSession("api/1")
        for number in range(ABORTS_REMEMBERED + 1):
            session.note_abort(str(number))
        assert not session.was_aborted("0")
        assert session.was_aborted("1")

    asyncio.run(go())


def test_a_session_expires_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> tuple[bool, bool]:
        session = StreamSession("api/1")
        fresh = session.expired
        monkeypatch.setattr(session_module, "LEASE", 0.0)
        await asyncio.sleep(0.01)
        return fresh, session.expired

    assert asyncio.run(go()) == (False, True)


def test_sessions_are_named_after_their_api_process() -> None:
    assert api_of("abc/12") == "abc"
