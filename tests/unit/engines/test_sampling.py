"""The choice of the next token from one row of logits."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from maestrale.engines.base import Sampling
from maestrale.engines.sampling import Sampler, logprobs, uniform

VOCAB = 1000


def row(seed: int = 0, scale: float = 3.0, size: int = VOCAB) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def sampler(sampling: Sampling, seed: int = 1, **more: object) -> Sampler:
    return Sampler(sampling, seed=seed, prompt=[1, 2, 3], **more)  # type: ignore[arg-type]


def drawn(sampling: Sampling, logits: NDArray[np.float32], count: int = 400) -> set[int]:
    one = sampler(sampling)
    return {one.sample(logits, position) for position in range(count)}


def naive_kept(logits: NDArray[np.float32], sampling: Sampling) -> set[int]:
    """What top_k, then top_p, then min_p leave, spelled out."""
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    sums = np.cumsum(weights[order])
    if sampling.top_p < 1:
        order = order[: int(np.searchsorted(sums, sampling.top_p * sums[-1])) + 1]
    return {int(token) for token in order if weights[token] >= sampling.min_p}


def test_greedy_is_the_first_of_the_largest() -> None:
    logits = np.zeros(10, np.float32)
    logits[[4, 7]] = 2
    assert sampler(Sampling(temperature=0.0)).sample(logits, 0) == 4


def test_logits_are_left_as_they_are() -> None:
    logits = row()
    before = logits.copy()
    one = sampler(Sampling(logit_bias=((3, 5.0),), repetition_penalty=2.0, min_p=0.1, top_k=5))
    one.observe(3)
    one.sample(logits, 0, np.arange(VOCAB) > 10)
    assert np.array_equal(before, logits)


def test_the_random_number_is_a_function_of_seed_and_position() -> None:
    numbers = [uniform(5, position) for position in range(1000)]
    assert numbers == [uniform(5, position) for position in range(1000)]
    assert numbers != [uniform(6, position) for position in range(1000)]
    assert len(set(numbers)) == 1000
    assert all(0 <= number < 1 for number in numbers)
    assert 0.45 < np.mean(numbers) < 0.55


def test_seeds_beyond_64_bits_and_below_zero_are_seeds() -> None:
    assert 0 <= uniform(-1, 0) < 1
    assert 0 <= uniform(2**70, 0) < 1


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    one = sampler(Sampling())
    counts = collections.Counter(one.sample(logits, position) for position in range(4000))
    for token, share in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert abs(counts[token] / 4000 - share) < 0.03


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0, 2.0])
@pytest.mark.parametrize("masked", [0.0, 0.5, 0.99])
def test_a_draw_is_the_first_token_at_which_the_probabilities_reach_the_number(
    temperature: float, masked: float
) -> None:
    logits = row(5, size=20_000)
    mask = np.random.default_rng(2).random(len(logits)) >= masked
    scaled = np.where(mask, logits.astype(np.float64) / temperature, -np.inf)
    sums = np.cumsum(np.exp(scaled - scaled.max()))
    one = sampler(Sampling(temperature=temperature), seed=9)
    for position in range(50):
        token = int(np.searchsorted(sums, uniform(9, position) * sums[-1], side="right"))
        assert one.sample(logits, position, mask) == token


def test_what_no_random_number_reaches_is_never_drawn_and_costs_no_warning() -> None:
    logits = np.full(VOCAB, -1e30, np.float32)
    logits[[3, 700]] = 0
    logits[500] = -np.inf
    with np.errstate(all="raise"):
        assert drawn(Sampling(), logits) == {3, 700}
        assert drawn(Sampling(temperature=0.01, top_p=0.9), logits) == {3, 700}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.2, 1.0, 4.0]),
    st.sampled_from([0, 2, 7, 500]),
    st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_top_k_top_p_and_min_p_leave_what_they_should(
    seed: int, scale: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = row(seed, scale)
    sampling = Sampling(temperature=0.9, top_k=top_k, top_p=top_p, min_p=min_p)
    assert drawn(sampling, logits, 60) <= naive_kept(logits, sampling)


def test_all_that_is_left_can_be_drawn() -> None:
    logits = np.zeros(64, np.float32)
    logits[:4] = [5, 4.9, 4.8, 4.7]
    sampling = Sampling(top_k=3)
    assert drawn(sampling, logits) == naive_kept(logits, sampling) == {0, 1, 2}


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert drawn(Sampling(top_k=2, top_p=0.5), logits) == {0}
    assert drawn(Sampling(top_p=0.5), logits) == {0, 1}


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 0.01])
def test_a_tiny_temperature_is_greedy_and_not_an_overflow(temperature: float) -> None:
    logits = row(3, scale=1000)
    one = sampler(Sampling(temperature=temperature))
    assert {one.sample(logits, position) for position in range(20)} == {int(logits.argmax())}


def test_logit_bias_bans_and_forces() -> None:
    logits = row()
    best = int(logits.argmax())
    ban = Sampling(temperature=0.0, logit_bias=((best, -100.0),))
    assert sampler(ban).sample(logits, 0) != best
    assert sampler(Sampling(temperature=0.0, logit_bias=((9, 100.0),))).sample(logits, 0) == 9


def test_penalties_are_openai_s_and_vllm_s() -> None:
    logits = np.array([4.0, 3.5, -1.0, 0.0], np.float32)

    def greedy(sampling: Sampling, observed: list[int], prompt: list[int]) -> int:
        one = Sampler(sampling, seed=0, prompt=prompt)
        for token in observed:
            one.observe(token)
        return one.sample(logits, 5)

    presence = Sampling(temperature=0.0, presence_penalty=1.0)
    assert greedy(presence, [0], []) == 1
    assert greedy(presence, [], [0]) == 0  # the prompt doesn't count
    frequency = Sampling(temperature=0.0, frequency_penalty=0.2)
    assert greedy(frequency, [0, 0], []) == 0
    assert greedy(frequency, [0, 0, 0], []) == 1
    repetition = Sampling(temperature=0.0, repetition_penalty=1.2)
    assert greedy(repetition, [], [0]) == 1  # the prompt counts
    assert greedy(repetition, [0, 1], []) == 0


def test_repetition_penalty_pushes_negative_logits_down() -> None:
    logits = np.array([-1.0, -1.5], np.float32)
    one = Sampler(Sampling(temperature=0.0, repetition_penalty=2.0), seed=0, prompt=[0])
    assert one.sample(logits, 0) == 1


def test_min_tokens_masks_the_stops_until_then() -> None:
    logits = np.zeros(8, np.float32)
    logits[2] = 9
    one = sampler(Sampling(temperature=0.0), min_tokens=3, stop_token_ids=[2])
    assert [one.sample(logits, position) == 2 for position in range(5)] == [
        *(False, False, False, True, True)
    ]


def test_a_constraint_that_must_end_has_the_last_word_over_min_tokens() -> None:
    only_stop = np.zeros(8, np.bool_)
    only_stop[2] = True
    one = sampler(Sampling(), min_tokens=3, stop_token_ids=[2])
    assert one.sample(np.zeros(8, np.float32), 0, only_stop) == 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sets(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
def test_only_allowed_tokens_are_chosen(seed: int, allowed: set[int]) -> None:
    mask = np.zeros(VOCAB, np.bool_)
    mask[list(allowed)] = True
    for sampling in (Sampling(), Sampling(temperature=0.0), Sampling(top_p=0.3), Sampling(top_k=3)):
        one = sampler(sampling, seed)
        assert all(one.sample(row(seed), position, mask) in allowed for position in range(5))


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = row(4)
    exact = logits.astype(np.float64)
    exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
    entry = logprobs(logits, 17, 5)
    assert entry.token_id == 17
    assert entry.logprob == pytest.approx(exact[17], abs=1e-4)
    assert [token for token, _ in entry.top] == list(np.argsort(-exact)[:5])
    assert [value for _, value in entry.top] == pytest.approx(sorted(exact)[:-6:-1], abs=1e-4)


def test_logprobs_without_alternatives() -> None:
    assert logprobs(row(), 3, 0).top == ()


def test_logprobs_with_ties_go_by_id() -> None:
    assert [token for token, _ in logprobs(np.zeros(50, np.float32), 3, 4).top] == [0, 1, 2, 3]
