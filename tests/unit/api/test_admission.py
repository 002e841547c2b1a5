from __future__ import annotations

import asyncio
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestrale.api.admission import MARGIN, Admission
from maestrale.errors import Unavailable


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def check_empty(admission: Admission) -> None:
    assert (admission.in_flight, admission.waiting, admission.requests) == (0, 0, 0)
    assert admission.idle.is_set()
    assert admission._queues == {}


class Load:
    """Starts requests and lets each go when told."""

    def __init__(self, admission: Admission, max_num_seqs: int) -> None:
        self.admission = admission
        self.max_num_seqs = max_num_seqs
        self.order: list[str] = []
        self.running: list[tuple[str, asyncio.Event]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, key: str, sequences: int = 1) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._run(key, sequences))
        self.tasks.append(task)
        return task

    async def _run(self, key: str, sequences: int) -> None:
        async with self.admission.slot(key, sequences, self.max_num_seqs):
            self.order.append(key)
            end = asyncio.Event()
            self.running.append((key, end))
            await end.wait()

    async def end_first(self) -> None:
        self.running.pop(0)[1].set()
        await settle()

    async def end_all(self) -> list[BaseException | None]:
        await settle()
        while self.running:
            await self.end_first()
        return await asyncio.gather(*self.tasks, return_exceptions=True)


def run(test: object) -> None:
    asyncio.run(test)  # type: ignore[arg-type]


def test_no_more_are_handed_on_than_the_engine_takes() -> None:
    async def scene() -> None:
        admission = Admission(100)
        load = Load(admission, 4)
        for _ in range(20):
            load.start("a")
        await settle()
        assert admission.in_flight == 4 + MARGIN
        assert admission.waiting == 20 - 4 - MARGIN
        assert await load.end_all() == [None] * 20
        check_empty(admission)

    run(scene())


def test_a_key_that_floods_does_not_delay_another() -> None:
    async def scene() -> None:
        admission = Admission(1000)
        load = Load(admission, 2)
        for _ in range(200):
            load.start("flood")
        await settle()
        for _ in range(3):
            load.start("other")
        await settle()
        before = len(load.order)
        for _ in range(6):
            await load.end_first()
        # While both wait, each holds its half of the four places.
        assert Counter(load.order[before:])["other"] == 3
        await load.end_all()
        check_empty(admission)

    run(scene())


def test_a_key_that_comes_late_finds_a_place_kept() -> None:
    async def scene() -> None:
        admission = Admission(1000, lambda: True)
        load = Load(admission, 16)
        for _ in range(100):
            load.start("flood")
        await settle()
        assert admission.in_flight == 16 + MARGIN - 2
        for _ in range(3):
            load.start("other")
        await settle()
        assert load.order[-2:] == ["other"] * 2
        assert admission.in_flight == 16 + MARGIN
        await load.end_all()
        check_empty(admission)

    run(scene())


def test_keys_share_equally_whatever_they_ask_for() -> None:
    async def scene() -> None:
        admission = Admission(10_000)
        load = Load(admission, 4)
        for _ in range(300):
            load.start("a")
        for _ in range(100):
            load.start("b")
            load.start("c")
        await settle()
        for _ in range(150):
            await load.end_first()
        counts = Counter(load.order)
        assert max(counts.values()) - min(counts.values()) <= 4 + MARGIN
        await load.end_all()
        check_empty(admission)

    run(scene())


def test_beyond_the_queue_is_503_at_once() -> None:
    async def scene() -> None:
        admission = Admission(3)
        load = Load(admission, 4)
        for _ in range(10):
            load.start("a")
        results = await load.end_all()
        refused = [result for result in results if isinstance(result, Unavailable)]
        assert len(refused) == 3
        assert all(error.retry_after for error in refused)
        check_empty(admission)

    run(scene())


def test_a_full_queue_makes_room_for_another_key() -> None:
    async def scene() -> None:
        admission = Admission(4)
        load = Load(admission, 2)
        flood = [load.start("flood") for _ in range(6)]
        await settle()
        other = load.start("other")
        await settle()
        assert isinstance(flood[-1].exception(), Unavailable)
        assert not other.done()
        results = await load.end_all()
        assert results == [None] * 5 + [flood[-1].exception(), None]
        check_empty(admission)

    run(scene())


def test_more_choices_than_places_run_alone() -> None:
    async def scene() -> None:
        admission = Admission(100)
        load = Load(admission, 2)
        load.start("a")
        load.start("b", 16)
        load.start("c")
        await settle()
        assert load.order == ["a"]
        await load.end_first()
        assert load.order == ["a", "b"]
        assert await load.end_all() == [None] * 3
        check_empty(admission)

    run(scene())


def test_leaving_the_queue_frees_the_place_and_lets_the_next_one_in() -> None:
    async def scene() -> None:
        admission = Admission(100)
        load = Load(admission, 1)
        for _ in range(1 + MARGIN):
            load.start("a")
        large = load.start("b", 3)
        load.start("c")
        await settle()
        large.cancel()
        await settle()
        await load.end_first()
        assert load.order[-1] == "c"
        await load.end_all()
        check_empty(admission)

    run(scene())


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    places=st.integers(1, 6),
    max_waiting=st.integers(0, 12),
    requests=st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(1, 5)), min_size=1, max_size=40
    ),
)
def test_no_place_is_lost_whoever_is_cancelled_when(
    seed: int, places: int, max_waiting: int, requests: list[tuple[str, int]]
) -> None:
    """They come, end, fail and are cancelled at any moment, also in the round of their grant."""

    async def scene() -> None:
        rng = random.Random(seed)
        admission = Admission(max_waiting)

        async def one(key: str, sequences: int) -> None:
            async with admission.slot(key, sequences, places):
                assert admission.in_flight <= max(places + MARGIN, 5)
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                if rng.random() < 0.2:
                    raise ValueError

        tasks = []
        for key, sequences in requests:
            tasks.append(asyncio.ensure_future(one(key, sequences)))
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            if rng.random() < 0.4:
                rng.choice(tasks).cancel()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        allowed = (Unavailable, ValueError, asyncio.CancelledError)
        assert all(result is None or isinstance(result, allowed) for result in results)
        check_empty(admission)

    run(scene())


@pytest.mark.parametrize("max_waiting", [0, 5])
def test_what_fits_at_once_never_needs_the_queue(max_waiting: int) -> None:
    async def scene() -> None:
        admission = Admission(max_waiting)
        load = Load(admission, 3)
        for _ in range(3):
            load.start("a")
        assert await load.end_all() == [None] * 3

    run(scene())


class Heard:
    """Who came and left, by number."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def arrived(self, number: int) -> None:
        self.told.append(("arrived", number))

    def left(self, number: int) -> None:
        self.told.append(("left", number))


def test_requests_go_on_up_to_the_horizon_and_no_further() -> None:
    async def scene() -> None:
        admission, heard = Admission(100), Heard()
        admission.arrivals = heard
        admission.let_on(-1)
        load = Load(admission, 4)
        for key in "abab":
            load.start(key)
        await settle()
        assert (admission.in_flight, admission.waiting) == (0, 4)
        assert heard.told == [("arrived", number) for number in (1, 2, 3, 4)]
        admission.let_on(2)
        await settle()
        assert load.order == ["a", "b"]
        await load.end_first()
        assert load.order == ["a", "b"]
        assert heard.told[-1] == ("left", 1)
        admission.let_on(math.inf)
        await settle()
        assert load.order == ["a", "b", "a", "b"]
        assert await load.end_all() == [None] * 4
        check_empty(admission)
        assert sorted(heard.told) == [
            (what, number) for what in ("arrived", "left") for number in (1, 2, 3, 4)
        ]

    run(scene())


def test_the_queue_of_a_model_that_is_not_loaded_is_bounded_and_can_be_refused() -> None:
    async def scene() -> None:
        admission = Admission(2)
        admission.let_on(-1)
        load = Load(admission, 1)
        for _ in range(4):
            load.start("a")
        await settle()
        assert admission.waiting == 3
        admission.refuse_waiting(Unavailable("It can't be loaded.", retry_after=7))
        ends = await load.end_all()
        assert [str(each) for each in ends[:3]] == ["It can't be loaded."] * 3
        assert "queue is full" in str(ends[3])
        check_empty(admission)
        admission.let_on(math.inf)
        load.start("a")
        assert await load.end_all() == [*ends, None]

    run(scene())
