"""Continuous batching, with a model that is not there: each step is taken as computed."""

from __future__ import annotations

import random

from maestrale.engines.cpu.kv_cache import BLOCK_SIZE
from maestrale.engines.cpu.scheduler import Scheduler
from maestrale.engines.cpu.sequence import Chunk, ScheduledSequence


def scheduler(
    blocks: int = 64,
    *,
    seqs: int = 8,
    budget: int = 128,
    caching: bool = True,
) -> Scheduler:
    return Scheduler(
        blocks,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        prefix_caching=caching,
    )


def sequence(length: int, *, start: int = 0, priority: int = 0) -> ScheduledSequence:
    tokens = list(range(start, start + length))
    return ScheduledSequence(tokens=tokens, prompt_length=length, priority=priority)


def step(under_test: Scheduler) -> list[Chunk]:
    """One step; each sequence whose logits are there gets the token 7."""
    chunks = under_test.schedule()
    wanting = [chunk.sequence for chunk in chunks if chunk.wants_logits]
    under_test.commit(chunks)
    for one in wanting:
        one.tokens.append(7)
    return chunks


def shares(chunks: list[Chunk]) -> dict[int, int]:
    return {chunk.sequence.arrival: chunk.count for chunk in chunks}


def test_a_long_prompt_is_prefilled_in_chunks() -> None:
    under_test = scheduler(budget=100)
    one = sequence(250)
    under_test.add(one)
    assert [shares(step(under_test)) for _ in range(4)] == [{1: 100}, {1: 100}, {1: 50}, {1: 1}]


def test_decodes_go_before_prefills_and_the_budget_holds() -> None:
    under_test = scheduler(budget=64)
    for index in range(3):
        under_test.add(sequence(10, start=100 * index))
    step(under_test)
    under_test.add(sequence(500, start=1000))
    for _ in range(3):
        chunks = step(under_test)
        assert shares(chunks) == {1: 1, 2: 1, 3: 1, 4: 61}


def test_a_short_prompt_does_not_wait_for_a_long_one_to_end() -> None:
    under_test = scheduler(budget=64)
    under_test.add(sequence(1000))
    step(under_test)
    short = sequence(20, start=5000)
    under_test.add(short)
    for _ in range(3):
        step(under_test)
    assert len(short.tokens) > short.prompt_length


def test_a_long_prompt_does_not_starve_among_short_ones() -> None:
    under_test = scheduler(blocks=256, budget=64, seqs=4)
    long = sequence(320, start=10_000)
    under_test.add(long)
    step(under_test)
    steps = 1
    while len(long.tokens) == long.prompt_length:
        under_test.add(sequence(60, start=20_000 + 100 * steps))
        step(under_test)
        for one in list(under_test.running):
            if one is not long and len(one.tokens) > one.prompt_length:
                under_test.remove(one)
        steps += 1
    assert steps <= 12


def test_no_more_than_max_num_seqs_run() -> None:
    under_test = scheduler(seqs=2)
    for index in range(5):
        under_test.add(sequence(5, start=10 * index))
    step(under_test)
    assert (len(under_test.running), len(under_test.waiting)) == (2, 3)


def test_first_come_first_served_but_lower_priority_values_first() -> None:
    under_test = scheduler(seqs=1)
    a, b, urgent = sequence(5), sequence(5, start=50), sequence(5, start=90, priority=-1)
    for one in (a, b, urgent):
        under_test.add(one)
    order = []
    while under_test.waiting or under_test.running:
        step(under_test)
        order.append(under_test.running[0])
        under_test.remove(under_test.running[0])
    assert order == [urgent, a, b]


def test_preempts_the_youngest_and_it_comes_back() -> None:
    under_test = scheduler(blocks=4, caching=False)
    old, young = sequence(BLOCK_SIZE - 4), sequence(BLOCK_SIZE - 4, start=500)
    under_test.add(old)
    under_test.add(young)
    for _ in range(BLOCK_SIZE + 8):  # both grow past two blocks: only four are there
        step(under_test)
    assert under_test.preemptions >= 1
    assert old in under_test.running
    assert young in under_test.waiting
    grown = len(young.tokens)
    under_test.remove(old)
    chunks = step(under_test)
    assert shares(chunks) == {young.arrival: grown}
    assert under_test.blocks.in_use == len(young.blocks)


def test_a_sequence_that_fills_the_whole_cache_alone_runs() -> None:
    under_test = scheduler(blocks=2)
    one = sequence(10)
    under_test.add(one)
    while len(one.tokens) < 2 * BLOCK_SIZE:
        step(under_test)
    assert under_test.preemptions == 0


def test_the_prefix_cache_spares_whole_blocks_but_never_the_last_token() -> None:
    under_test = scheduler()
    first = sequence(2 * BLOCK_SIZE)
    under_test.add(first)
    step(under_test)
    again = sequence(2 * BLOCK_SIZE)
    under_test.add(again)
    chunks = step(under_test)
    assert shares(chunks)[again.arrival] == 1
    assert again.cached_tokens == 2 * BLOCK_SIZE - 1
    assert again.blocks[0] == first.blocks[0]
    assert again.blocks[1] != first.blocks[1]
    found = 2 * BLOCK_SIZE - 1
    assert (under_test.prefix_queries, under_test.prefix_hits) == (4 * BLOCK_SIZE, found)


def prompt(*tokens: int) -> ScheduledSequence:
    return ScheduledSequence(tokens=list(tokens), prompt_length=len(tokens))


def test_a_beginning_shorter_than_a_block_is_copied() -> None:
    under_test = scheduler()
    under_test.add(prompt(*range(40)))
    step(under_test)
    other = prompt(*range(20), *range(500, 530))
    under_test.add(other)
    chunks = under_test.schedule()
    (copy,) = under_test.take_copies()
    assert copy == (under_test.running[0].blocks[0], other.blocks[0])
    assert shares(chunks)[other.arrival] == 30
    assert other.cached_tokens == 20
    assert under_test.take_copies() == []


def test_what_is_left_of_a_prompt_after_its_last_block_is_copied_too() -> None:
    under_test = scheduler()
    first = prompt(*range(BLOCK_SIZE + 20))
    under_test.add(first)
    for _ in range(BLOCK_SIZE):  # its own answer goes on in the same block
        step(under_test)
    under_test.finish(first)
    again = prompt(*range(BLOCK_SIZE + 20), *[7] * 10)
    under_test.add(again)
    step(under_test)
    assert again.cached_tokens == BLOCK_SIZE + 29, "the answer's sevens, too"


def test_a_prompt_of_one_token_is_copied_too() -> None:
    under_test = scheduler()
    under_test.add(prompt(3))
    step(under_test)
    other = prompt(3, 4, 5)
    under_test.add(other)
    step(under_test)
    assert other.cached_tokens == 1


def test_a_copied_block_that_was_the_last_to_be_had_keeps_its_beginning() -> None:
    under_test = scheduler(blocks=1)
    first = prompt(*range(20))
    under_test.add(first)
    step(under_test)
    under_test.remove(first)
    again = prompt(*range(15), 90, 91, 92)
    under_test.add(again)
    under_test.schedule()
    assert under_test.take_copies() == [(first_block := again.blocks[0], first_block)]
    assert again.cached_tokens == 15


def test_generated_tokens_are_cached_as_well() -> None:
    under_test = scheduler()
    first = sequence(BLOCK_SIZE)
    under_test.add(first)
    for _ in range(BLOCK_SIZE + 2):
        step(under_test)
    under_test.remove(first)
    follow_up = ScheduledSequence(tokens=[*first.tokens, 1, 2], prompt_length=len(first.tokens) + 2)
    under_test.add(follow_up)
    step(under_test)
    assert follow_up.cached_tokens == 2 * BLOCK_SIZE


def test_equal_prompts_at_once_are_prefilled_once() -> None:
    under_test = scheduler(budget=128, seqs=8)
    length = 4 * BLOCK_SIZE + 5
    group = [sequence(length) for _ in range(8)]
    for one in group:
        under_test.add(one)
    computed = 0
    while any(len(one.tokens) == length for one in group):
        chunks = step(under_test)
        computed += sum(chunk.count for chunk in chunks if len(chunk.sequence.tokens) <= length + 1)
    assert sum(one.cached_tokens for one in group) == 7 * 4 * BLOCK_SIZE


def test_the_claim_on_a_block_falls_with_its_owner() -> None:
    under_test = scheduler(budget=BLOCK_SIZE)
    owner, waiter = sequence(4 * BLOCK_SIZE), sequence(4 * BLOCK_SIZE)
    under_test.add(owner)
    under_test.add(waiter)
    step(under_test)
    assert waiter in under_test.waiting
    under_test.remove(owner)
    step(under_test)
    assert waiter in under_test.running
    assert waiter.cached_tokens == BLOCK_SIZE


def test_without_prefix_caching_nothing_is_shared_or_waited_for() -> None:
    under_test = scheduler(caching=False, budget=256)
    a, b = sequence(70), sequence(70)
    under_test.add(a)
    under_test.add(b)
    assert shares(step(under_test)) == {1: 70, 2: 70}
    assert not set(a.blocks) & set(b.blocks)


def test_an_answer_is_cached_to_its_last_computed_token() -> None:
    under_test = scheduler()
    first = sequence(BLOCK_SIZE + 5)
    under_test.add(first)
    while len(first.tokens) < 4 * BLOCK_SIZE:
        step(under_test)
    under_test.finish(first)
    assert under_test.blocks.in_use == 0
    follow_up = ScheduledSequence(tokens=[*first.tokens, 1, 2], prompt_length=len(first.tokens) + 2)
    under_test.add(follow_up)
    step(under_test)
    assert follow_up.cached_tokens == 4 * BLOCK_SIZE - 1


class Guessing(ScheduledSequence):
    """Always guesses as many as it may, and is never right."""

    greedy = True

    def draft(self, most: int, *, free: int, alone: bool) -> list[int]:
        return [0] * (most if self.greedy else min(most, free))


class Modest(Guessing):
    greedy = False


def test_guesses_stay_within_the_budget_and_the_blocks() -> None:
    under_test = scheduler(budget=10)
    first = Guessing(tokens=list(range(BLOCK_SIZE - 4)), prompt_length=BLOCK_SIZE - 4)
    second = Guessing(tokens=list(range(50, 52)), prompt_length=2)
    under_test.add(first)
    for _ in range(3):
        assert all(not chunk.drafts for chunk in step(under_test)), "while it is in prefill"
    (chunk,) = step(under_test)
    assert len(chunk.drafts) == 3, "its block has room for three more"
    under_test.add(second)
    for _ in range(8):
        assert sum(chunk.count + len(chunk.drafts) for chunk in step(under_test)) <= 10
    assert first.computed == len(first.tokens) - 1


def test_guesses_beside_others_fill_a_step_up_to_four_rows() -> None:
    under_test = scheduler()
    rows = []
    for index in range(6):
        tokens = list(range(100 * index, 100 * index + 4))
        under_test.add(Modest(tokens=tokens, prompt_length=4))
        step(under_test)
        chunks = step(under_test)
        rows.append(sum(chunk.count + len(chunk.drafts) for chunk in chunks))
    assert rows == [4, 4, 4, 4, 8, 8]


def test_everything_ends_and_every_block_comes_back_whatever_arrives() -> None:
    chance = random.Random(5)
    for round_ in range(20):
        under_test = scheduler(
            blocks=chance.randint(6, 20),
            seqs=chance.randint(1, 6),
            budget=chance.choice([1, 3, 8, 33, 128]),
            caching=chance.random() < 0.7,
        )
        waiting = []
        for _ in range(12):
            shared, own = chance.randint(0, 60), chance.randint(1, 60)
            tokens = [*range(shared), *(chance.randrange(100) for _ in range(own))]
            waiting.append(ScheduledSequence(tokens=tokens, prompt_length=len(tokens)))
        limits = {id(one): len(one.tokens) + chance.randint(1, 40) for one in waiting}
        steps = 0
        while waiting or under_test.running or under_test.waiting:
            if waiting and chance.random() < 0.5:
                under_test.add(waiting.pop())
            chunks = step(under_test)
            assert chunks or not (under_test.running or under_test.waiting)
            for chunk in chunks:
                assert len(chunk.sequence.blocks) * BLOCK_SIZE >= chunk.sequence.computed
                generates = chunk.sequence.computed > chunk.sequence.prefill_length
                assert chunk.count == 1 or not generates
            held = [one.blocks for one in under_test.running]
            assert under_test.blocks.in_use == len({block for blocks in held for block in blocks})
            for one in list(under_test.running):
                if len(one.tokens) >= limits[id(one)] or chance.random() < 0.01:
                    under_test.remove(one)
            steps += 1
            assert steps < 5000, round_
        assert under_test.blocks.in_use == 0
