"""Rate limits that several processes share are as exact as one process's."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator

import pytest

from maestrale.api.rate import RateLimiter
from maestrale.api.shared_levels import SharedLevels, make_levels
from maestrale.errors import RateLimited
from maestrale.keys import Key

ALICE = Key(name="alice", sha256="aa" * 32, requests_per_minute=600, tokens_per_minute=50)
NOON = 1000.0


@pytest.fixture
def fd() -> Iterator[int]:
    made = make_levels()
    yield made
    os.close(made)


def limiter(fd: int) -> RateLimiter:
    return RateLimiter(clock=lambda: NOON, shared=SharedLevels(fd))


def granted(rates: RateLimiter, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            rates.take_request(ALICE)
        except RateLimited:
            continue
        count += 1
    return count


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_four_processes_at_once_grant_exactly_the_limit(fd: int) -> None:
    readers = []
    for _ in range(4):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, struct.pack("i", granted(limiter(fd), 400)))
            os._exit(0)
        os.close(writer)
        readers.append(reader)
    counts = [struct.unpack("i", os.read(reader, 4))[0] for reader in readers]
    for reader in readers:
        os.close(reader)
        os.wait()
    assert sum(counts) == 600
    assert granted(limiter(fd), 1) == 0


def test_what_one_spends_the_other_knows(fd: int) -> None:
    one, other = limiter(fd), limiter(fd)
    one.settle(ALICE, one.reserve(ALICE, 20), 45)
    assert other.levels(ALICE)[-1].remaining == 5
    with pytest.raises(RateLimited):
        other.reserve(ALICE, 6)


def test_a_record_that_makes_no_sense_is_a_full_bucket(fd: int) -> None:
    levels = SharedLevels(fd)
    for level, at in ((float("nan"), NOON), (1e9, NOON), (1.0, 1e300)):
        levels.write("odd", level, at)
        assert levels.read("odd", 7.0, NOON) == (7.0, NOON)


def test_the_memory_has_no_name_and_is_not_inherited_by_chance(fd: int) -> None:
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
    assert not os.get_inheritable(fd)


def test_it_needs_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    made = make_levels()
    try:
        assert granted(limiter(made), 700) == 600
    finally:
        os.close(made)


def test_nobody_can_cut_it_under_those_who_use_it(fd: int) -> None:
    levels = SharedLevels(fd)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(fd, 0)
    levels.write("still there", 1.0, NOON)
    assert levels.read("still there", 7.0, NOON) == (1.0, NOON)


def test_all_of_it_is_there_from_the_beginning(fd: int) -> None:
    # What is not there yet would have to come when a page is first touched, and kill then.
    status = os.fstat(fd)
    assert status.st_blocks * 512 >= status.st_size > 0
