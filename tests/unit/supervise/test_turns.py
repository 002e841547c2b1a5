"""Fair turns: one place to each key in turn, and none lost."""

from __future__ import annotations

import asyncio

import pytest

from maestrale.supervise.turns import FairTurns

pytestmark = pytest.mark.anyio


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_flood_waits_behind_itself() -> None:
    turns = FairTurns(1)
    order: list[str] = []

    async def work(key: str) -> None:
        await turns.acquire(key)
        order.append(key)
        await asyncio.sleep(0)
        turns.release(key)

    flood = [asyncio.create_task(work("flood")) for _ in range(50)]
    await asyncio.sleep(0)
    others = [asyncio.create_task(work(key)) for key in ("a", "b", "a")]
    await asyncio.gather(*flood, *others)
    assert order[0] == "flood"
    assert set(order[:6]) == {"flood", "a", "b"}
    assert order[:9].count("a") == 2
    assert len(order) == 53


async def test_places_are_used_at_once_and_no_more_of_them() -> None:
    turns = FairTurns(2)
    await turns.acquire("a")
    await turns.acquire("a")
    third = asyncio.create_task(turns.acquire("b"))
    await settle()
    assert not third.done()
    turns.release("a")
    await third
    turns.release("a")
    turns.release("b")
    await turns.acquire("c")


async def test_a_key_holds_no_more_places_than_it_may_and_leaves_the_others() -> None:
    turns = FairTurns(3, each=2)
    for _ in range(2):
        await turns.acquire("flood")
    third = asyncio.create_task(turns.acquire("flood"))
    await settle()
    assert not third.done()
    await asyncio.wait_for(turns.acquire("other"), 1)
    turns.release("other")
    await settle()
    assert not third.done()
    turns.release("flood")
    await asyncio.wait_for(third, 1)


@pytest.mark.parametrize("moment", ["waiting", "granted", "granted after"])
async def test_who_is_cancelled_takes_no_place_along(moment: str) -> None:
    turns = FairTurns(1)
    await turns.acquire("a")
    leaving = asyncio.create_task(turns.acquire("b"))
    staying = asyncio.create_task(turns.acquire("b"))
    await settle()
    if moment == "granted":
        turns.release("a")
        leaving.cancel()
    else:
        leaving.cancel()
        if moment == "waiting":
            await settle()
        turns.release("a")
    await asyncio.wait_for(staying, 1)
    assert leaving.cancelled() or moment == "granted"
    await asyncio.gather(leaving, return_exceptions=True)
    turns.release("b")
    await asyncio.wait_for(turns.acquire("c"), 1)
