"""Blocks of the KV cache: counting, sharing, eviction."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from maestrale.engines.cpu.kv_cache import BlockManager, block_digest


def test_digest_depends_on_all_tokens_before() -> None:
    first = block_digest(None, [1, 2, 3])
    assert block_digest(None, [1, 2, 3]) == first
    assert block_digest(None, [1, 2, 4]) != first
    assert block_digest(first, [5, 6, 7]) != block_digest(None, [5, 6, 7])


def test_allocates_every_block_once_and_then_none() -> None:
    manager = BlockManager(3)
    assert {manager.allocate(), manager.allocate(), manager.allocate()} == {0, 1, 2}
    assert manager.allocate() is None
    assert (manager.available, manager.in_use) == (0, 3)


def test_released_block_without_content_is_free_again() -> None:
    manager = BlockManager(1)
    block = manager.allocate()
    assert block is not None
    manager.release([block])
    assert manager.in_use == 0
    assert manager.allocate() == block


def test_lookup_gives_the_longest_known_beginning() -> None:
    manager = BlockManager(4)
    a, b = manager.allocate(), manager.allocate()
    assert a is not None
    assert b is not None
    manager.publish(a, b"a")
    manager.publish(b, b"b")
    assert manager.lookup([b"a", b"b", b"c"]) == [a, b]
    assert manager.lookup([b"c", b"b"]) == []


def test_shared_block_stays_until_its_last_user_leaves() -> None:
    manager = BlockManager(2)
    block = manager.allocate()
    assert block is not None
    manager.publish(block, b"x")
    manager.share(block)
    manager.release([block])
    assert manager.in_use == 1
    manager.release([block])
    assert manager.in_use == 0
    assert manager.lookup([b"x"]) == [block]


def test_unused_cached_blocks_go_least_recently_used_first_and_ends_before_beginnings() -> None:
    manager = BlockManager(4)
    blocks = [manager.allocate() for _ in range(4)]
    held = [block for block in blocks if block is not None]
    for block, name in zip(held, [b"a0", b"a1", b"b0", b"b1"], strict=True):
        manager.publish(block, name)
    manager.release(held[:2])
    manager.release(held[2:])
    gone = []
    for name in (b"a1", b"a0", b"b1", b"b0"):
        assert manager.lookup([name]), name
        gone.append(manager.allocate())
        assert not manager.lookup([name]), name
    assert gone == [held[1], held[0], held[3], held[2]]


def test_first_of_equal_blocks_stays_in_the_cache() -> None:
    manager = BlockManager(2)
    a, b = manager.allocate(), manager.allocate()
    assert a is not None
    assert b is not None
    manager.publish(a, b"x")
    manager.publish(b, b"x")
    manager.release([b])
    assert manager.lookup([b"x"]) == [a]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("asprl"), st.integers(0, 5)), max_size=80))
def test_counts_hold_whatever_happens(actions: list[tuple[str, int]]) -> None:
    manager = BlockManager(6)
    held: list[int] = []
    names = [b"%d" % index for index in range(6)]
    for action, number in actions:
        if action == "a":
            block = manager.allocate()
            assert (block is None) == (len(set(held)) == 6)
            if block is not None:
                assert block not in held
                held.append(block)
        elif action == "s":
            for block in manager.lookup([names[number]]):
                manager.share(block)
                held.append(block)
        elif action == "p" and held:
            block = held[number % len(held)]
            if not any(manager.lookup([name]) == [block] for name in names):
                manager.publish(block, names[number])
        elif action == "r" and held:
            manager.release([held.pop(number % len(held))])
        assert manager.in_use == len(set(held))
        assert manager.available == 6 - len(set(held))
