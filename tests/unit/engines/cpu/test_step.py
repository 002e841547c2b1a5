"""The arrays of a step, from the chunks that the scheduler picked."""

from __future__ import annotations

import numpy as np

from maestrale.engines.cpu.sequence import Chunk, ScheduledSequence
from maestrale.engines.cpu.step import step_input


def sequence(tokens: int, computed: int, blocks: list[int]) -> ScheduledSequence:
    """Whose tokens are 100, 101, ..."""
    return ScheduledSequence(
        tokens=list(range(100, 100 + tokens)),
        prompt_length=tokens,
        prefill_length=tokens,
        computed=computed,
        blocks=blocks,
    )


def test_chunks_follow_each_other() -> None:
    begun, ended = sequence(50, 0, [4, 7]), sequence(34, 31, [2, 9])
    found = step_input([Chunk(begun, 3), Chunk(ended, 3)])
    assert found.token_ids.tolist() == [100, 101, 102, 131, 132, 133]
    assert found.past.tolist() == [0, 31]
    assert found.begins.tolist() == [0, 3, 6]
    assert found.blocks.tolist() == [4, 2, 9]  # those that its tokens reach
    assert found.block_begins.tolist() == [0, 1, 3]
    assert found.logit_rows.tolist() == [5]  # the first one's prompt goes on
    assert all(array.dtype == np.int32 for array in vars(found).values())


def test_guesses_follow_their_sequence_s_last_token() -> None:
    found = step_input([Chunk(sequence(32, 31, [5, 6]), 1, drafts=(7, 8))])
    assert found.token_ids.tolist() == [131, 7, 8]
    assert found.past.tolist() == [31]
    assert found.begins.tolist() == [0, 3]
    assert found.blocks.tolist() == [5, 6]
    assert found.logit_rows.tolist() == [0, 1, 2]


def test_of_a_prompt_that_is_scored_every_logit_row_is_wanted_once() -> None:
    one = sequence(50, 0, [4, 7])
    one.scoring = True
    assert step_input([Chunk(one, 3)]).logit_rows.tolist() == [0, 1, 2]
    one.computed = 3
    one.scored = 3
    other = sequence(34, 31, [2, 9])
    both = step_input([Chunk(other, 3), Chunk(one, 47)])
    assert both.logit_rows.tolist() == list(range(2, 50))  # the prompt's last, for the answer
    one.computed = 0  # preempted, and computed again
    assert step_input([Chunk(one, 3)]).logit_rows.tolist() == []
    assert step_input([Chunk(one, 5)]).logit_rows.tolist() == [3, 4]
    one.scored, one.tokens = 49, [*one.tokens, 7]
    assert step_input([Chunk(one, 50)]).logit_rows.tolist() == []
    one.computed = 50
    found = step_input([Chunk(one, 1, drafts=(8,))])
    assert found.logit_rows.tolist() == [0, 1]
