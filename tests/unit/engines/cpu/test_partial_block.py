"""The block that begins with most of what is wanted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from maestrale.engines.cpu.kv_cache import PartialBlocks

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), TOKENS), max_size=20), TOKENS, st.data())
def test_the_longest_common_beginning_is_found(
    entries: list[tuple[bytes, tuple[int, ...]]], wanted: tuple[int, ...], data: st.DataObject
) -> None:
    known = PartialBlocks()
    for block, (before, tokens) in enumerate(entries):
        known.add(before, tokens, block)
    gone = data.draw(st.sets(st.sampled_from(range(len(entries))))) if entries else set()
    for block in gone:
        known.remove(*entries[block], block)
    left = {block: entry for block, entry in enumerate(entries) if block not in gone}

    def common(block: int) -> int:
        before, tokens = left[block]
        length = 0
        while before == b"a" and tokens[: length + 1] == wanted[: length + 1]:
            if length == min(len(tokens), len(wanted)):
                break
            length += 1
        return length

    block, count = known.longest(b"a", wanted)
    assert count == max(map(common, left), default=0)
    assert (block in left and common(block) == count) if count else block == -1
