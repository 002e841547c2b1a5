"""Where a prompt goes, and what is remembered of prompts."""

from __future__ import annotations

import pytest

from maestrale.cluster.prefix import PrefixTable, pick
from maestrale.cluster.routing_table import PendingRequest, RoutingTable, Slot

BLOCK = 4
LONG = tuple(range(40))


def table(remembered: int = 1000) -> PrefixTable:
    return PrefixTable(BLOCK, remembered)


def test_a_beginning_is_found_block_by_block() -> None:
    known = table()
    known.add(LONG[:10], "a")
    known.add(LONG[:23], "b")
    assert known.matches(LONG, ["a", "b", "c"]) == {"a": 8, "b": 20, "c": 0}


def test_the_same_block_elsewhere_is_no_beginning() -> None:
    known = table()
    known.add(LONG[:8], "a")
    assert known.matches(LONG[4:8] + LONG[:8], ["a"]) == {"a": 0}


def test_a_replica_that_is_gone_is_forgotten() -> None:
    known = table()
    known.add(LONG, "a")
    known.add(LONG, "b")
    known.forget("a")
    assert known.matches(LONG, ["a", "b"]) == {"a": 0, "b": 40}


def test_the_table_is_bounded_and_the_oldest_goes() -> None:
    known = table(remembered=10)
    known.add(LONG, "a")
    other = tuple(range(100, 140))
    known.add(other, "b")
    assert known.matches(LONG, ["a"]) == {"a": 0}
    assert known.matches(other, ["b"]) == {"b": 40}


@pytest.mark.parametrize(
    ("loads", "matches", "chosen"),
    [
        ({"a": 3, "b": 0}, {"a": 64, "b": 0}, "a"),  # a little busier, and has the cache
        ({"a": 9, "b": 0}, {"a": 64, "b": 0}, "b"),  # overloaded
        ({"a": 3, "b": 0}, {"a": 0, "b": 0}, "b"),  # nobody has it
        ({"a": 1, "b": 1}, {"a": 32, "b": 64}, "b"),  # who has more of it
        ({"a": 64, "b": 62}, {"a": 64, "b": 0}, "b"),  # full
        ({"a": 64, "b": 64}, {"a": 64, "b": 0}, "a"),  # all are full
    ],
)
def test_the_cache_decides_unless_its_holder_is_overloaded(
    loads: dict[str, int], matches: dict[str, int], chosen: str
) -> None:
    assert pick(loads, matches, capacity=64, turn=0) == chosen


def test_equals_take_turns() -> None:
    loads = {"a": 2, "b": 2, "c": 5}
    assert {pick(loads, {}, 64, turn) for turn in range(4)} == {"a", "b"}


def told(routing: str = "prefix") -> RoutingTable:
    one = RoutingTable(routing=routing)
    for name, fingerprint in (("a", "x"), ("b", "x"), ("c", "y")):
        one.add_slot(name, Slot(fingerprint, 64))
    return one


def route(
    one: RoutingTable, wire_id: str, fingerprint: str = "x", present: str = "abc"
) -> str | None:
    one.pending[wire_id] = PendingRequest(tuple(range(100)), fingerprint)
    chosen = one.choose(wire_id, frozenset(present))
    if chosen is not None:
        one.routed(wire_id, chosen)
    return chosen


def test_a_follow_up_goes_where_its_beginning_went() -> None:
    one = told()
    first = route(one, "1")
    assert [route(one, str(number)) for number in range(2, 6)] == [first] * 4


def test_only_replicas_of_the_fingerprint_that_are_there_get_it() -> None:
    one = told()
    assert route(one, "1", "y") == "c"
    assert route(one, "2", "y", present="ab") is None
    assert route(one, "3", "z") is None
    one.remove_slot("c")
    assert route(one, "4", "y") is None


def test_a_request_that_was_taken_back_is_not_routed() -> None:
    assert told().choose("unknown", frozenset("abc")) is None


def test_round_robin_takes_turns_whatever_the_cache() -> None:
    one = told("round_robin")
    assert {route(one, str(number)) for number in range(4)} == {"a", "b"}


def test_requests_that_come_together_find_each_others_beginnings() -> None:
    one = told()
    for number in range(6):
        one.pending[str(number)] = PendingRequest(tuple(range(100)), "x")
    chosen = {one.choose(str(number), frozenset("abc")) for number in range(6)}
    assert len(chosen) == 1
    assert one.slots[chosen.pop() or ""].load == 6


def test_a_replicas_word_of_what_it_has_forgets_nothing_on_its_way() -> None:
    one = told()
    for name in "ab":
        one.slots[name].capacity = 2
    for number in range(4):
        one.pending[str(number)] = PendingRequest(tuple(range(100)), "x")
    for number in range(4):
        one.choose(str(number), frozenset("ab"))
        for name in "ab":  # it has heard of none of them so far
            one.set_load(name, 0)
    assert (one.slots["a"].load, one.slots["b"].load) == (2, 2)


def test_what_arrived_or_ended_is_on_its_way_no_more() -> None:
    one = told()
    one.pending["1"] = PendingRequest(tuple(range(100)), "x")
    first = one.choose("1", frozenset("a"))
    assert (first, one.slots["a"].load) == ("a", 1)
    assert one.choose("1", frozenset("b")) == "b"  # asked again, as "a" could not be reached
    assert (one.slots["a"].load, one.slots["b"].load) == (0, 1)
    one.set_load("b", 1)
    one.settled("1")
    assert one.slots["b"].load == 1
    assert one.choose("1", frozenset("b")) is None
