"""The ledger alone: each token once, whatever the deaths; and who is to blame for those."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.engines.base import (
    EngineInfo,
    Feature,
    GenerationRequest,
    TokenDelta,
    TokenLogprob,
)
from maestrale.engines.mailbox import merge
from maestrale.errors import EngineError, MaestraleError, ReplayMismatch, Unavailable
from maestrale.supervise.ledger import Entry, Ledger

from .conftest import request

ANSWER = tuple(range(1000, 1020))


def info(fingerprint: str = "a", *features: Feature) -> EngineInfo:
    return EngineInfo(
        engine="test",
        version="1",
        fingerprint=fingerprint,
        max_model_len=4096,
        vocab_size=2000,
        kv_capacity_tokens=4096,
        max_num_seqs=64,
        max_num_batched_tokens=64,
        features=frozenset(features or ("deterministic",)),
    )


class Engine:
    """What the ledger talks to: notes what is submitted and aborted."""

    def __init__(self) -> None:
        self.running: dict[str, GenerationRequest] = {}
        self.info: EngineInfo | None = None
        self.ledger = Ledger(self, single=True)

    def engine_for(self, entry: Entry) -> EngineInfo | None:
        return self.info

    def released(self, wire_id: str) -> None:
        self.running.pop(wire_id, None)

    def submit(self, what: GenerationRequest) -> None:
        assert what.request_id not in self.running
        self.running[what.request_id] = what

    def abort(self, wire_id: str) -> None:
        self.running.pop(wire_id, None)

    def up(self, fingerprint: str = "a", *features: Feature) -> None:
        self.info = info(fingerprint, *features)
        self.ledger.submit_waiting()

    def down(self, *, blamed: bool = True) -> bool:
        """It dies; whether that counts against it."""
        self.running.clear()
        self.info = None
        return self.ledger.lost(blamed=blamed)

    def wire_id(self, number: int = 0) -> str:
        """The id under which request `number` runs now."""
        (found,) = [wire for wire in self.running if wire.startswith(f"r{number}/")]
        return found

    def say(self, number: int, *tokens: int, last: bool = False) -> None:
        delta = TokenDelta(tokens, "stop" if last else None)
        self.ledger.delta(self.wire_id(number), delta)

    def read(self, number: int, prefilled: int) -> None:
        """So much of its prompt is read."""
        self.ledger.delta(self.wire_id(number), TokenDelta((), prefilled=prefilled))

    def runs(self) -> set[int]:
        return {int(wire.partition("/")[0][1:]) for wire in self.running}


def taken(entry: Entry) -> TokenDelta:
    """All that the reader of `entry` can get now."""
    return asyncio.run(entry.mailbox.get())


def error_of(entry: Entry) -> Exception:
    """What the reader of `entry` ends with, after all that came before."""
    for _ in range(100):
        try:
            taken(entry)
        except MaestraleError as error:
            return error
    raise AssertionError("no error came")


@given(st.lists(st.lists(st.integers(1, 7), max_size=8), max_size=3), st.integers(1, 7))
def test_every_token_once_and_in_order(lives: list[list[int]], last_chunk: int) -> None:
    """Each life gives chunks of these sizes and is killed."""
    engine = Engine()
    entry = engine.ledger.open(request())
    lives = [*lives, [last_chunk] * len(ANSWER)]
    given_out: list[TokenDelta] = []
    for life in lives:
        engine.up()
        position = 0
        for chunk in life:
            if position >= len(ANSWER) or not engine.running:
                break
            tokens = ANSWER[position : position + chunk]
            position += len(tokens)
            done = position == len(ANSWER)
            logprobs = tuple(TokenLogprob(token, -1.0) for token in tokens)
            delta = TokenDelta(tokens, "stop" if done else None, logprobs)
            engine.ledger.delta(engine.wire_id(), delta)
        engine.down(blamed=False)
    while not given_out or given_out[-1].finish_reason is None:
        given_out.append(taken(entry))
    answer = merge(given_out)
    assert answer.token_ids == ANSWER
    assert [entry.token_id for entry in answer.logprobs or ()] == list(ANSWER)
    assert len(engine.ledger) == 0


@pytest.mark.parametrize("dies_at", [0, 3])
def test_the_prompts_logprobs_are_given_once(dies_at: int) -> None:
    engine = Engine()
    scores = (TokenLogprob(5, -1.0), TokenLogprob(6, -2.0))
    entry = engine.ledger.open(request(prompt_logprobs=0))
    given_out: list[TokenDelta] = []
    for tokens in (ANSWER[:dies_at], ANSWER):
        engine.up()
        for position, token in enumerate(tokens):
            last = position == len(ANSWER) - 1
            delta = TokenDelta(
                (token,), "stop" if last else None, prompt_logprobs=scores if not position else None
            )
            engine.ledger.delta(engine.wire_id(), delta)
        if len(tokens) < len(ANSWER):
            if tokens:
                given_out.append(taken(entry))
            engine.down()
    given_out.append(taken(entry))
    answer = merge(given_out)
    assert (answer.token_ids, answer.prompt_logprobs) == (ANSWER, scores)
    assert [delta.prompt_logprobs for delta in given_out[1:]] == [None] * (len(given_out) - 1)


def test_a_prompt_alone_ends_without_a_token() -> None:
    engine = Engine()
    engine.up()
    entry = engine.ledger.open(request(prompt_logprobs=0, max_tokens=0))
    scores = (TokenLogprob(5, -1.0),)
    engine.ledger.delta(engine.wire_id(), TokenDelta((), "length", prompt_logprobs=scores))
    delta = taken(entry)
    assert (delta.token_ids, delta.finish_reason, delta.prompt_logprobs) == ((), "length", scores)
    assert len(engine.ledger) == 0


@given(st.integers(1, 19), st.integers(0, 18), st.integers(1, 19))
def test_one_changed_token_ends_the_request(known: int, changed: int, chunk: int) -> None:
    engine = Engine()
    engine.up()
    entry = engine.ledger.open(request())
    engine.say(0, *ANSWER[:known])
    engine.down()
    engine.up()
    replayed = list(ANSWER)
    replayed[changed] = 7
    for start in range(0, len(replayed), chunk):
        if engine.running:
            engine.say(0, *replayed[start : start + chunk])
    if changed < known:
        assert isinstance(error_of(entry), ReplayMismatch)
        assert engine.ledger.counters.mismatched == 1
        assert not engine.running, "aborted"
    else:
        assert list(taken(entry).token_ids) == replayed


def test_an_answer_that_ends_sooner_than_before_is_a_mismatch() -> None:
    engine = Engine()
    engine.up()
    entry = engine.ledger.open(request())
    engine.say(0, 5, 6, 7)
    engine.down()
    engine.up()
    engine.say(0, 5, 6, last=True)
    assert isinstance(error_of(entry), ReplayMismatch)


def test_the_same_request_is_submitted_again_under_a_new_wire_id() -> None:
    engine = Engine()
    engine.up()
    engine.ledger.open(request(seed=3, logprobs=2))
    first = dict(engine.running)
    engine.say(0, 5)
    engine.down()
    engine.up()
    assert set(first) != set(engine.running)
    (before,), (after,) = first.values(), engine.running.values()
    assert (before.prompt, before.seed, before.forced) == (after.prompt, after.seed, after.forced)


def test_what_was_sent_is_forced_on_an_engine_that_is_not_deterministic() -> None:
    engine = Engine()
    engine.up("a", "json_schema")
    entry = engine.ledger.open(request(forced=(1, 2)))
    engine.say(0, 1)
    engine.down()
    engine.up("a", "json_schema")
    assert engine.running[engine.wire_id()].forced == (1, 2)
    engine.say(0, 1, 2, 3)
    engine.down()
    engine.up("a", "json_schema")
    assert engine.running[engine.wire_id()].forced == (1, 2, 3)
    engine.say(0, 1, 2)
    engine.say(0, 3, 4, last=True)
    assert taken(entry).token_ids == (1, 2, 3, 4)


def test_what_comes_late_for_an_earlier_run_or_an_aborted_request_is_dropped() -> None:
    engine = Engine()
    engine.up()
    entry = engine.ledger.open(request())
    old = engine.wire_id()
    engine.down()
    engine.up()
    engine.ledger.delta(old, TokenDelta((9,)))
    engine.ledger.failed(old, EngineError("late"))
    engine.say(0, 5)
    assert taken(entry).token_ids == (5,)
    late = engine.wire_id()
    engine.ledger.close(entry)
    assert not engine.running
    engine.ledger.delta(late, TokenDelta((6,)))
    assert len(engine.ledger) == 0


def test_suspects_run_one_by_one_and_only_the_killer_is_refused() -> None:
    engine = Engine()
    engine.up()
    entries = [engine.ledger.open(request(n)) for n in range(3)]
    engine.say(0, 5)
    assert not engine.down(), "progress: it counts against nobody but who made none"
    engine.up()
    assert engine.runs() == {0, 1, 2}
    assert engine.down()
    late = engine.ledger.open(request(9))
    engine.up()
    assert engine.runs() == {1}, "two lives without a step forward: one at a time"
    assert not engine.down(), "put down to the one on trial"
    engine.up()
    assert engine.runs() == {1}, "one death alone may be anybody's doing"
    assert not engine.down()
    assert "refused" in str(error_of(entries[1]))
    engine.up()
    assert engine.runs() == {2}
    engine.say(2, 8)
    assert not engine.ledger.trying_suspects
    assert engine.runs() == {0, 2, 9}, "all are tried: all go on"
    engine.say(0, 5, 6, last=True)
    engine.say(2, 10, last=True)
    engine.say(9, 10, last=True)
    answers = [taken(entry).token_ids for entry in (entries[0], entries[2], late)]
    assert answers == [(5, 6), (8, 10), (10,)]
    assert engine.ledger.counters.refused == 1


@pytest.mark.parametrize("where", ["in the prompt", "in the answer"])
def test_a_life_with_a_step_forward_is_no_strike(where: str) -> None:
    engine = Engine()
    entry = engine.ledger.open(request(prompt=tuple(range(4000))))
    for life in range(1, len(ANSWER)):
        engine.up()
        assert engine.runs() == {0}
        if where == "in the prompt":
            engine.read(0, 100 * life)
        else:
            engine.say(0, *ANSWER[:life])
        assert not engine.down()
        assert not engine.ledger.trying_suspects
    assert entry.strikes == 0


def test_a_killer_that_ends_at_another_place_is_not_refused() -> None:
    engine = Engine()
    entry = engine.ledger.open(request(prompt=tuple(range(4000))))
    for place in (900, 900, 900, 500, 600, 500, 400):
        engine.up()
        engine.read(0, place)
        engine.down()
    assert engine.ledger.trying_suspects
    assert len(engine.ledger) == 1
    engine.up()
    engine.read(0, 400)
    engine.down()
    assert "refused" in str(error_of(entry))


def test_a_kill_from_outside_is_no_evidence() -> None:
    engine = Engine()
    for number in range(3):
        engine.ledger.open(request(number))
    for _ in range(1000):
        engine.up()
        assert not engine.down(blamed=False)
    assert not engine.ledger.trying_suspects
    assert len(engine.ledger) == 3


def test_where_replay_outlasts_a_life_fewer_run_at_once_until_they_move() -> None:
    engine = Engine()
    engine.up()
    for number in range(8):
        engine.ledger.open(request(number))
        engine.say(number, 1, 2)
    for left in (8, 8, 4, 2, 1):
        engine.down(blamed=False)
        engine.up()
        assert len(engine.runs()) == left
        for number in engine.runs():
            engine.say(number, 1)
    engine.say(0, 2, 3)
    assert engine.runs() == {0, 1}
    engine.say(1, 1, 2, 3)
    assert engine.runs() == {0, 1, 2, 3}
    engine.say(2, 1, 2, last=True)
    assert engine.runs() == {0, 1, 3, 4}
    engine.say(3, 1, 2, 3)
    engine.say(4, 1, 2, 3)
    assert engine.runs() == {0, 1, 3, 4, 5, 6, 7}


@pytest.mark.parametrize("seed", range(20))
def test_one_poisonous_request_among_sixteen_good_ones_under_kills(seed: int) -> None:
    chance = random.Random(seed)
    engine = Engine()
    entries = {number: engine.ledger.open(request(number)) for number in range(17)}
    said: dict[int, list[int]] = {number: [] for number in range(17)}
    kills = 0
    while len(engine.ledger):
        engine.up()
        places: dict[str, int] = {}
        for _ in range(chance.randrange(len(ANSWER) + 2)):
            died = False
            for wire in tuple(engine.running):
                number = int(wire.partition("/")[0][1:])
                place = places.get(wire, 0)
                if number == 16 and place == 5:
                    died = True
                    break
                places[wire] = place + 1
                last = place + 1 == len(ANSWER)
                delta = TokenDelta((ANSWER[place],), "stop" if last else None)
                engine.ledger.delta(wire, delta)
            if died:
                engine.down()
                break
        else:
            kills += 1
            engine.down(blamed=False)
        assert kills < 3000
    for number in range(16):
        said[number] += taken(entries[number]).token_ids
        assert said[number] == list(ANSWER)
    assert "refused" in str(error_of(entries[16]))
    assert kills > 3, "hundreds over all seeds"
    assert engine.ledger.counters.refused == 1


def test_a_suspect_that_leaves_or_fails_makes_room_for_the_next() -> None:
    engine = Engine()
    engine.up()
    entries = [engine.ledger.open(request(n)) for n in range(4)]
    engine.down()
    engine.up()
    engine.down()
    engine.up()
    assert engine.runs() == {0}
    engine.down(blamed=False)
    engine.up()
    assert engine.runs() == {0}, "it was no trial"
    engine.ledger.close(entries[0])
    assert engine.runs() == {1}
    engine.ledger.failed(engine.wire_id(1), EngineError("too long"))
    assert str(error_of(entries[1])) == "too long"
    assert engine.runs() == {2}


def test_a_lone_suspect_s_death_counts_as_the_engine_s_too() -> None:
    engine = Engine()
    engine.ledger.open(request())
    for _ in range(3):
        engine.up()
        assert engine.down(), "with nobody to spare, it is not put down to the request alone"


def test_an_idle_death_makes_no_suspects() -> None:
    engine = Engine()
    for _ in range(5):
        engine.up()
        assert engine.down()
        engine.up()
        assert not engine.down(blamed=False)
    engine.ledger.open(request(1))
    engine.ledger.open(request(2))
    engine.up()
    assert engine.runs() == {1, 2}


def test_fail_all_ends_everything_also_during_a_trial() -> None:
    engine = Engine()
    entries = [engine.ledger.open(request(n)) for n in range(3)]
    for _ in range(2):
        engine.up()
        engine.down()
    engine.up()
    engine.ledger.fail_all(Unavailable("stopping"))
    assert [str(error_of(entry)) for entry in entries] == ["stopping"] * 3
    assert not engine.running
    engine.ledger.open(request(5))
    assert engine.runs() == {5}


def test_a_request_that_can_t_be_sent_is_nobody_else_s_trouble() -> None:
    class Strict(Engine):
        def submit(self, what: GenerationRequest) -> None:
            if len(what.prompt) > 10:
                raise EngineError("too long to be sent")
            super().submit(what)

    engine = Strict()
    before = engine.ledger.open(request(0, prompt=(1,) * 11))
    engine.ledger.open(request(1))
    engine.up()
    assert str(error_of(before)) == "too long to be sent"
    with pytest.raises(EngineError, match="too long"):
        engine.ledger.open(request(2, prompt=(1,) * 11))
    assert engine.runs() == {1}
    assert len(engine.ledger) == 1
