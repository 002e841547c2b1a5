"""The kernel's step: the same bits on every level, however a sequence is cut, whatever is computed
beside it, with any number of threads; and what it refuses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernel_models import (
    LLAMA,
    SCALAR,
    SPECS,
    Decoder,
    Floats,
    KernelError,
    Part,
    Weights,
    levels,
    pool,
    random_weights,
)

LENGTH = 70  # tokens: three blocks of the cache
BLOCKS = (3, 1, 2)


def tokens_of(vocab: int, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def in_chunks(decoder: Decoder, tokens: list[int], cuts: list[int]) -> Floats:
    """Logits of every token, each step as long as `cuts` says."""
    parts, past = [], 0
    for count in cuts:
        parts.append(decoder.step([Part(tokens[past : past + count], past, BLOCKS)])[0])
        past += count
    return np.concatenate(parts)


def same_bits(one: Floats, other: Floats) -> bool:
    return one.shape == other.shape and bool((one.view(np.uint32) == other.view(np.uint32)).all())


@pytest.mark.parametrize("name", SPECS)
def test_every_level_gives_the_scalar_ones_bits(name: str) -> None:
    weights = random_weights(SPECS[name])
    tokens = tokens_of(SPECS[name].vocab, LENGTH, 1)
    other = tokens_of(SPECS[name].vocab, 9, 2)
    with pool(2) as threads:
        with Decoder(threads, weights, SCALAR) as decoder:
            expected, hidden = decoder.step([Part(tokens, 0, BLOCKS), Part(other, 0, (7,))])
        assert np.isfinite(expected).all()
        assert len({row.tobytes() for row in expected}) == len(expected)
        for level in levels():
            with Decoder(threads, weights, level) as decoder:
                logits, rows = decoder.step([Part(tokens, 0, BLOCKS), Part(other, 0, (7,))])
            assert same_bits(logits, expected), level
            assert same_bits(rows, hidden), level


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_are_those_of_the_sequence_alone(name: str, threads: int) -> None:
    weights = random_weights(SPECS[name])
    vocab = SPECS[name].vocab
    tokens = tokens_of(vocab, LENGTH, 1)
    others = [tokens_of(vocab, count, count) for count in (5, 40, 1)]
    best = [SCALAR, *levels()][-1]
    with pool(threads) as opened, Decoder(opened, weights, best) as decoder:
        whole = in_chunks(decoder, tokens, [LENGTH])
        assert same_bits(in_chunks(decoder, tokens, [1, 6, 32, 20, 11]), whole)
        assert same_bits(in_chunks(decoder, tokens, [65, 1, 1, 1, 1, 1]), whole)
        # In the midst of others, of which one goes on behind tokens of its own.
        decoder.step([Part(others[1], 0, (9, 10))])
        batch = [
            Part(others[0], 0, (4,)),
            Part(tokens, 0, BLOCKS),
            Part(others[2], 40, (9, 10)),
        ]
        logits, _ = decoder.step(batch)
        assert same_bits(logits[5 : 5 + LENGTH], whole)
    with pool(1) as opened, Decoder(opened, weights, best) as decoder:
        assert same_bits(in_chunks(decoder, tokens, [LENGTH]), whole)


def test_long_sequences_have_the_same_bits_in_any_cut() -> None:
    """Several spans of attention, and windows that leave some of them out."""
    spec = replace(LLAMA, windows=(0, 300), sinks=True, vocab=64)
    weights = random_weights(spec)
    tokens = tokens_of(spec.vocab, 900, 1)
    blocks = tuple(range(5, 5 + 29))
    results = {}
    for level in [SCALAR, *levels()]:
        with pool(2) as opened, Decoder(opened, weights, level) as decoder:
            whole = decoder.step([Part(tokens, 0, blocks)])[0]
            decoder.step([Part(tokens[:597], 0, blocks)], rows=[])
            rest = decoder.step([Part(tokens[597:], 597, blocks)])[0]
        assert same_bits(rest, whole[597:])
        results[level] = whole
    for logits in results.values():
        assert same_bits(logits, results[SCALAR])


@pytest.mark.parametrize("hidden_rows", [-1, 3])
def test_more_hidden_rows_than_rows_are_refused(hidden_rows: int) -> None:
    with (
        pool(1) as opened,
        Decoder(opened, random_weights(LLAMA), SCALAR) as decoder,
        pytest.raises(KernelError, match=f"{hidden_rows} of its 2 rows"),
    ):
        decoder.step([Part([1, 2, 3], 0, BLOCKS)], rows=[2], hidden_rows=hidden_rows)


def test_only_wanted_rows_are_computed_and_each_as_often_as_it_is_wanted() -> None:
    with pool(2) as opened, Decoder(opened, random_weights(LLAMA), SCALAR) as decoder:
        tokens = tokens_of(LLAMA.vocab, 40, 1)
        logits, hidden = decoder.step([Part(tokens, 0, BLOCKS)])
        some, rows = decoder.step([Part(tokens, 0, BLOCKS)], rows=[39, 3, 39])
        assert same_bits(some, logits[[39, 3, 39]])
        assert same_bits(rows, hidden[[39, 3, 39]])
        none, _ = decoder.step([Part(tokens, 0, BLOCKS)], rows=[])
        assert none.shape == (0, LLAMA.vocab)
        # And yet their keys and values are kept.
        more, _ = decoder.step([Part([1], 40, BLOCKS)])
        again = decoder.step([Part([*tokens, 1], 0, BLOCKS)])[0]
        assert same_bits(more[0:1], again[40:41])


def test_a_copied_block_is_as_good_as_the_first() -> None:
    tokens = tokens_of(LLAMA.vocab, 50, 1)
    with pool(2) as opened, Decoder(opened, random_weights(LLAMA), SCALAR) as decoder:
        decoder.step([Part(tokens, 0, (3, 1))])
        expected, _ = decoder.step([Part([7], 50, (3, 1))])
        decoder.step([Part(tokens, 0, (3, 1))])
        decoder.copy(3, 8)
        decoder.copy(1, 9)
        decoder.step([Part(tokens_of(LLAMA.vocab, 64, 9), 0, (3, 1))])
        logits, _ = decoder.step([Part([7], 50, (8, 9))])
        assert same_bits(logits, expected)
        decoder.copy(8, 64)  # not there: nothing happens
        decoder.copy(-1, 8)
        assert same_bits(decoder.step([Part([7], 50, (8, 9))])[0], expected)


@pytest.mark.parametrize(
    ("part", "rows", "said"),
    [
        (Part([80], 0, (0,)), None, "token 80 is not in the vocabulary of 80"),
        (Part([-1], 0, (0,)), None, "token -1"),
        (Part([1], 0, (64,)), None, "block 64 is not in the cache of 64"),
        (Part([1], 0, (-1,)), None, "block -1"),
        (Part([1], 32, (0,)), None, "has 33 tokens, and blocks for 32"),
        (Part([1] * 33, 0, (0,)), None, "has 33 tokens, and blocks for 32"),
        (Part([1], -1, (0,)), None, "below 0"),
        (Part([1], 2**31 - 1, (0,)), None, "blocks for 32"),
        (Part([1], 0, (0,)), [1], "row 1 is not one of a batch's 1 tokens"),
        (Part([1], 0, (0,)), [-1], "row -1"),
    ],
)
def test_a_wrong_batch_is_refused(part: Part, rows: list[int] | None, said: str) -> None:
    with pool(1) as opened, Decoder(opened, random_weights(LLAMA), SCALAR) as decoder:
        expected = decoder.step([Part([1, 2], 0, (0,))])[0]
        with pytest.raises(KernelError, match=said):
            decoder.step([part], rows)
        assert same_bits(decoder.step([Part([1, 2], 0, (0,))])[0], expected)


def test_an_empty_batch_and_an_empty_sequence_are_no_failure() -> None:
    with pool(1) as opened, Decoder(opened, random_weights(LLAMA), SCALAR) as decoder:
        assert decoder.step([])[0].shape == (0, LLAMA.vocab)
        expected = decoder.step([Part([1, 2], 0, (0,))])[0]
        empty = Part([], 5, ())
        assert same_bits(decoder.step([empty, Part([1, 2], 0, (0,)), empty])[0], expected)


def broken(weights: Weights, name: str, shape: tuple[int, int]) -> Weights:
    weights.matrices[name] = np.ones(shape, np.float32)
    return weights


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (broken(random_weights(LLAMA), "1.down", (64, 128)), r"layer 1: matrix 'down'.*\[64, 96\]"),
        (broken(random_weights(LLAMA), "0.key", (32, 64)), r"layer 0: matrix 'key'.*\[64, 64\]"),
        (broken(random_weights(LLAMA), "embedding", (80, 32)), r"embedding.* \[80, 64\]"),
        (random_weights(replace(LLAMA, heads=3)), "multiple of kv_heads"),
        (random_weights(replace(LLAMA, rope_dims=(34,))), "rope 0 has 34 dims"),
        (random_weights(replace(LLAMA, rope_of=(0, 1))), "layer 1 names rope 1 of 1"),
        (random_weights(replace(LLAMA, epsilon=0.0)), "norm_epsilon"),
        (random_weights(replace(LLAMA, attention_scale=float("nan"))), "attention_scale"),
        (random_weights(replace(LLAMA, windows=(0, -1))), "window below 0"),
        (random_weights(replace(LLAMA, experts=2, experts_used=3)), "experts_used is 3"),
    ],
)
def test_a_model_that_does_not_fit_together_is_refused(weights: Weights, said: str) -> None:
    with pool(1) as opened, pytest.raises(KernelError, match=said):
        Decoder(opened, weights, SCALAR)


def test_a_level_that_is_not_here_is_refused() -> None:
    with pool(1) as opened, pytest.raises(KernelError, match="no level 99"):
        Decoder(opened, random_weights(LLAMA), 99)
    if levels():
        with pool(1) as opened, pytest.raises(KernelError, match="exact needs the scalar level"):
            Decoder(opened, random_weights(LLAMA), levels()[0], exact=True)


def threads_here() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_closed_pool_leaves_no_thread() -> None:
    before = threads_here()
    for _ in range(5):
        with pool(4) as opened:
            assert threads_here() == before + 3
            with Decoder(opened, random_weights(LLAMA), SCALAR) as decoder:
                decoder.step([Part([1, 2, 3], 0, (0,))])
        assert threads_here() == before
    with pytest.raises(KernelError, match="1 to 1024 threads"), pool(0):
        pass
