from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestrale.serve.residency import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    OPEN,
    Action,
    Load,
    Residency,
    Unload,
)


def residency(
    budget: int | None = 10,
    sizes: Sequence[tuple[str, int]] = (("a", 6), ("b", 6)),
    *,
    pinned: Sequence[str] = (),
    keep_alive: float | None = None,
) -> Residency:
    found = Residency(budget)
    for id_, size in sizes:
        found.add(id_, size, pinned=id_ in pinned, keep_alive=keep_alive)
    return found


def done(found: Residency, now: float) -> list[Action]:
    """What is decided until nothing more is, all of it done at once."""
    every: list[Action] = []
    while actions := found.decide(now):
        every += actions
        for action in actions:
            if isinstance(action, Load):
                found.loaded(action.id, now)
            else:
                found.unloaded(action.id)
    return every


def test_a_model_is_loaded_when_it_is_asked_for_and_once() -> None:
    found = residency()
    assert found.decide(0) == []
    assert found.arrived("a", 1, 0)
    assert found.horizon("a") == -OPEN
    assert found.decide(0) == [Load("a")]
    assert found.arrived("a", 2, 1)
    assert found.decide(1) == []
    found.loaded("a", 2)
    assert found.horizon("a") == OPEN
    assert not found.arrived("a", 3, 3)
    assert found.decide(3) == []


def test_the_least_recently_used_idle_model_goes_first() -> None:
    found = residency(10, (("a", 3), ("b", 3), ("c", 3), ("d", 3)))
    for now, id_ in enumerate("abc"):
        found.arrived(id_, 1, now)
        done(found, now)
        found.left(id_, 1, now)
    found.arrived("a", 2, 5)
    found.left("a", 2, 6)
    found.arrived("d", 1, 7)
    assert done(found, 7) == [Unload("b", "to make room for d"), Load("d")]


def test_no_more_goes_than_must() -> None:
    found = residency(10, (("a", 2), ("b", 6), ("c", 7)))
    for now, id_ in enumerate("ab"):
        found.arrived(id_, 1, now)
        done(found, now)
        found.left(id_, 1, now)
    found.arrived("c", 1, 5)
    assert done(found, 5) == [Unload("b", "to make room for c"), Load("c")]


def test_none_goes_with_work_in_flight() -> None:
    found = residency()
    found.arrived("a", 1, 0)
    done(found, 0)
    found.arrived("b", 1, 1)
    assert done(found, 1) == []
    assert found.horizon("a") == 1
    assert found.left("a", 1, 2)
    assert done(found, 2) == [Unload("a", "to make room for b"), Load("b")]


def test_what_came_before_it_closed_is_answered_and_what_comes_later_waits() -> None:
    found = residency()
    for number in (1, 2, 3):
        found.arrived("a", number, 0)
    done(found, 0)
    found.arrived("b", 1, 1)
    found.decide(1)
    assert found.arrived("a", 4, 2)
    assert found.horizon("a") == 3
    for number in (1, 2):
        found.left("a", number, 3)
        assert found.decide(3) == []
    found.left("a", 3, 4)
    assert done(found, 4) == [Unload("a", "to make room for b"), Load("b")]
    # a's fourth waits for what b has, and no longer.
    found.arrived("b", 2, 5)
    assert found.horizon("b") == 1
    found.left("b", 1, 6)
    assert done(found, 6)[:2] == [Unload("b", "to make room for a"), Load("a")]


def test_one_that_closes_opens_again_when_its_room_is_not_needed_any_more() -> None:
    found = residency()
    found.arrived("a", 1, 0)
    done(found, 0)
    found.arrived("b", 1, 1)
    found.decide(1)
    found.arrived("a", 2, 2)
    found.left("b", 1, 3)
    assert found.decide(3) == []
    assert found.horizon("a") == OPEN


def test_a_pinned_model_stays() -> None:
    found = residency(10, pinned=("a",), keep_alive=5)
    assert (found.room(), found.room(pinned=True)) == (4, -2)
    found.call("a", 0)
    assert done(found, 0) == [Load("a")]
    assert found.wake_at(0) is None
    found.arrived("b", 1, 100)
    assert done(found, 100) == []
    assert found.horizon("a") == OPEN


def test_an_idle_model_goes_after_its_time_and_says_when() -> None:
    found = residency(keep_alive=5)
    found.arrived("a", 1, 0)
    done(found, 0)
    assert found.wake_at(0) is None
    found.left("a", 1, 10)
    assert found.wake_at(10) == 15
    assert found.decide(14.9) == []
    assert found.decide(15) == [Unload("a", "unused for 5 s")]


def test_one_without_a_time_stays_until_its_room_is_needed() -> None:
    found = residency(keep_alive=None)
    found.arrived("a", 1, 0)
    done(found, 0)
    found.left("a", 1, 0)
    assert found.wake_at(0) is None
    assert found.decide(1e9) == []


def test_who_waited_longest_is_loaded_first_however_large() -> None:
    found = residency(10, (("a", 6), ("large", 10), ("small", 2)))
    found.arrived("a", 1, 0)
    done(found, 0)
    found.arrived("large", 1, 1)
    found.arrived("small", 1, 2)
    assert found.decide(2) == []
    found.left("a", 1, 3)
    assert done(found, 3) == [Unload("a", "to make room for large"), Load("large")]


def test_one_that_failed_is_tried_again_after_growing_pauses() -> None:
    found = residency(pinned=("a",))
    now, pauses = 0.0, []
    found.call("a", now)
    for _ in range(10):
        assert found.decide(now) == [Load("a")]
        pauses.append(found.failed("a", now))
        assert found.decide(now) == []
        wake = found.wake_at(now)
        assert wake == now + pauses[-1]
        now = wake
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    assert found.decide(now) == [Load("a")]
    found.loaded("a", now)
    found.unloaded("a")
    assert found.failed("a", now) == FIRST_PAUSE


def test_a_failure_holds_up_no_other() -> None:
    found = residency(10, (("a", 6), ("b", 6)))
    found.arrived("a", 1, 0)
    found.decide(0)
    found.failed("a", 0)
    found.arrived("b", 1, 0.1)
    assert found.decide(0.1) == [Load("b")]


def test_the_operator_loads_and_unloads() -> None:
    found = residency()
    found.call("a", 0)
    assert done(found, 0) == [Load("a")]
    found.arrived("a", 1, 1)
    assert not found.dismiss("a")
    found.left("a", 1, 2)
    assert found.dismiss("a")
    assert done(found, 2) == [Unload("a", "as the operator asked")]
    assert found.dismiss("b")
    assert done(found, 3) == []
    found.failed("a", 3)
    found.call("a", 3)
    assert found.decide(3) == [Load("a")]


class Simulation:
    """Requests, loads and unloads at random times; what must always hold is checked at each."""

    def __init__(self, sizes: list[int], budget: int, seed: int) -> None:
        self.dice = random.Random(seed)
        self.sizes = {f"m{number}": size for number, size in enumerate(sizes)}
        self.budget = budget
        self.found = residency(budget, list(self.sizes.items()), keep_alive=30)
        self.now = 0.0
        self.number = dict.fromkeys(self.sizes, 0)
        self.waiting: dict[str, list[int]] = {id_: [] for id_ in self.sizes}
        self.running: dict[str, list[int]] = {id_: [] for id_ in self.sizes}
        self.begun: list[Action] = []
        self.loads = self.answered = 0
        self.order: dict[str, list[int]] = {id_: [] for id_ in self.sizes}

    def step(self) -> None:
        for action in self.found.decide(self.now):
            if isinstance(action, Unload):
                assert not self.running[action.id]
            self.begun.append(action)
        held = sum(size for id_, size in self.sizes.items() if self.found.place(id_) != "unloaded")
        assert held <= self.budget
        for id_ in self.sizes:
            horizon = self.found.horizon(id_)
            while self.waiting[id_] and self.waiting[id_][0] <= horizon:
                assert self.found.place(id_) == "loaded"
                number = self.waiting[id_].pop(0)
                self.order[id_].append(number)
                self.running[id_].append(number)

    def ask(self, id_: str) -> None:
        self.number[id_] += 1
        self.waiting[id_].append(self.number[id_])
        self.found.arrived(id_, self.number[id_], self.now)

    def give_up(self, id_: str) -> None:
        if self.waiting[id_]:
            number = self.waiting[id_].pop(self.dice.randrange(len(self.waiting[id_])))
            self.found.left(id_, number, self.now)

    def finish(self, id_: str) -> None:
        if self.running[id_]:
            number = self.running[id_].pop(self.dice.randrange(len(self.running[id_])))
            self.found.left(id_, number, self.now)
            self.answered += 1

    def settle_action(self) -> None:
        if not self.begun:
            return
        action = self.begun.pop(self.dice.randrange(len(self.begun)))
        if isinstance(action, Unload):
            self.found.unloaded(action.id)
            return
        self.loads += 1
        self.found.loaded(action.id, self.now)

    def drain(self) -> None:
        """No more requests: all that wait are answered."""
        for _ in range(10_000):
            if not any(self.waiting.values()) and not any(self.running.values()):
                return
            self.now += 0.1
            for id_ in self.sizes:
                self.finish(id_)
            self.settle_action()
            self.step()
        raise AssertionError("requests wait for ever")


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=1, max_size=5),
    budget=st.integers(10, 20),
    seed=st.integers(0, 2**32),
)
def test_whatever_comes_the_budget_holds_and_nothing_is_lost(
    sizes: list[int], budget: int, seed: int
) -> None:
    world = Simulation(sizes, budget, seed)
    for _ in range(300):
        world.now += world.dice.random()
        id_ = world.dice.choice(list(world.sizes))
        world.dice.choice(
            (
                lambda id_=id_: world.ask(id_),
                lambda id_=id_: world.finish(id_),
                lambda id_=id_: world.give_up(id_),
                world.settle_action,
            )
        )()
        world.step()
    world.drain()
    for numbers in world.order.values():
        assert numbers == sorted(numbers)


def test_ten_clients_that_alternate_between_two_do_not_thrash() -> None:
    world = Simulation([6, 6], 10, 1)
    turns = [0] * 10
    asked: dict[tuple[str, int], int] = {}
    for client in range(10):
        world.ask("m0" if client % 2 else "m1")
        asked["m0" if client % 2 else "m1", world.number["m0" if client % 2 else "m1"]] = client
    while min(turns) < 20:
        world.now += 0.1
        world.step()
        world.settle_action()
        for id_ in world.sizes:
            for number in list(world.running[id_]):
                world.running[id_].remove(number)
                world.found.left(id_, number, world.now)
                client = asked.pop((id_, number))
                turns[client] += 1
                other = "m0" if id_ == "m1" else "m1"
                world.ask(other)
                asked[other, world.number[other]] = client
    answered = sum(turns)
    assert max(turns) - min(turns) <= 1
    assert world.loads <= answered / 4


@pytest.mark.parametrize("budget", [None, 100])
def test_what_fits_together_stays_together(budget: int | None) -> None:
    found = residency(budget)
    for id_ in "ab":
        found.arrived(id_, 1, 0)
    assert found.decide(0) == [Load("a"), Load("b")]


def test_those_that_were_loaded_unasked_and_do_not_fit_go_the_newest_first() -> None:
    found = residency(10, (("a", 6), ("b", 3), ("c", 3), ("d", 2)), pinned="a", keep_alive=9)
    for now, id_ in enumerate("abcd"):
        found.loaded(id_, now)
    found.arrived("d", 1, 4)  # in use: it may stay until it is done
    assert found.decide(4) == [Unload(id_, "it doesn't fit beside the others") for id_ in "cb"]
    found.unloaded("c")
    found.unloaded("b")
    assert found.decide(4) == []
