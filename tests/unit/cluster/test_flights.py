"""Requests that may be what kills engines, and a session's bookkeeping on the replica."""

from __future__ import annotations

import asyncio

import pytest

from maestrale.cluster import session as session_module
from maestrale.cluster.flights import Flight, Trials
from maestrale.cluster.session import ABORTS_REMEMBERED, Session, api_of
from maestrale.engines.base import GenerationRequest
from maestrale.supervise.messages import Abort


def flight(strikes: int = 0) -> Flight:
    one = Flight(GenerationRequest(request_id="r", prompt=(1,), max_tokens=4, seed=0), "")
    for _ in range(strikes):
        one.strike()
    return one


def test_suspects_are_tried_one_at_a_time_in_order() -> None:
    trials = Trials()
    first, second, third = flight(2), flight(2), flight(2)
    assert [trials.may_run(each) for each in (first, second, third)] == [True, False, False]
    assert trials.may_run(first)
    assert trials.over(first) is second
    assert trials.over(second) is third
    assert trials.over(third) is None
    assert not trials.running


def test_who_is_no_suspect_runs_meanwhile() -> None:
    trials = Trials()
    assert trials.may_run(flight(2))
    assert trials.may_run(flight(1))


def test_a_suspect_that_leaves_while_it_waits_holds_nobody_up() -> None:
    trials = Trials()
    first, second, third = flight(2), flight(2), flight(2)
    for each in (first, second, third):
        trials.may_run(each)
    assert trials.over(second) is None
    assert trials.over(first) is third


def test_a_new_token_clears_and_four_barren_deaths_refuse() -> None:
    one = flight(3)
    assert one.suspect
    assert not one.refused
    one.cleared()
    assert not one.suspect
    assert flight(4).refused


def test_a_session_gives_all_that_came_at_once_and_wakes_its_reader() -> None:
    async def go() -> tuple[int, int, int]:
        session = Session("api/1")
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
        session = Session("api/1")
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
        session = Session("api/1")
        for number in range(ABORTS_REMEMBERED + 1):
            session.note_abort(str(number))
        assert not session.was_aborted("0")
        assert session.was_aborted("1")

    asyncio.run(go())


def test_a_session_expires_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> tuple[bool, bool]:
        session = Session("api/1")
        fresh = session.expired
        monkeypatch.setattr(session_module, "LEASE", 0.0)
        await asyncio.sleep(0.01)
        return fresh, session.expired

    assert asyncio.run(go()) == (False, True)


def test_sessions_are_named_after_their_api_process() -> None:
    assert api_of("abc/12") == "abc"
