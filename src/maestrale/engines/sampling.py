"""From one row of logits to one token id.

Rows are never handled together, so a token can't depend on what shares the batch. The random
number for a token is a pure function of the request's seed and the token's position, so a
replay that starts anywhere draws the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maestrale.engines.base import Sampling, TokenLogprob

Row = NDArray[np.float32]
Mask = NDArray[np.bool_]
Ids = NDArray[np.int64]

_SEED_MASK = (1 << 64) - 1
_RUN = 256  # tokens summed together on the way to the drawn one
# Relative to the most likely token. Few tokens lie above, and nearly all of the mass.
_LIKELY = (np.float32(1e-3), np.float32(1e-6))
# e^-37 < 2^-53: what is less likely than that beside the best token, no random number tells from
# nothing. Left out, it costs nothing; its tiny weights would be the slowest of all to compute.
_REACH = np.float32(37)


class Sampler:
    """The choice of every next token of one sequence."""

    def __init__(
        self,
        sampling: Sampling,
        *,
        seed: int,
        prompt: Sequence[int],
        min_tokens: int = 0,
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self._sampling = sampling
        self._seed = seed & _SEED_MASK
        self._min_tokens = min_tokens
        self._stops = np.array(stop_token_ids, np.int64)
        self._prompt = prompt
        self._counts: dict[int, int] = {}
        self._seen: set[int] = set()
        self._penalises = (
            sampling.presence_penalty != 0.0
            or sampling.frequency_penalty != 0.0
            or sampling.repetition_penalty != 1.0
        )
        if sampling.repetition_penalty != 1.0:
            self._seen.update(prompt)
        self._bias_ids = np.array([token for token, _ in sampling.logit_bias], np.int64)
        self._bias = np.array([bias for _, bias in sampling.logit_bias], np.float32)

    def observe(self, token: int) -> None:
        """Record a generated token (sampled or forced)."""
        if self._penalises:
            self._counts[token] = self._counts.get(token, 0) + 1
            if self._sampling.repetition_penalty != 1.0:
                self._seen.add(token)

    def sample(self, logits: Row, position: int, mask: Mask | None = None) -> int:
        """Choose the token at `position` (0 for the first generated one).

        `logits` [vocab] is not changed. `mask` [vocab] is True where a token is allowed; at
        least one must be.
        """
        row = logits
        if self._penalises or len(self._bias_ids):
            row = logits.copy()
            self._penalise(row)
            row[self._bias_ids] += self._bias
        allowed = self._allowed(mask, position, len(row))
        if allowed is not None:
            row = np.where(allowed, row, np.float32(-np.inf))
        greedy = int(row.argmax())
        if self._sampling.temperature == 0.0 or self._sampling.top_k == 1:
            return greedy
        ids, weights = _weights(row, row[greedy], self._sampling.temperature)
        kept = _kept(weights, self._sampling)
        if kept is not None:
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        index = _inverse_cdf(weights, uniform(self._seed, position))
        return index if ids is None else int(ids[index])

    def _allowed(self, mask: Mask | None, position: int, size: int) -> Mask | None:
        if position >= self._min_tokens or not len(self._stops):
            return mask
        early = np.ones(size, np.bool_) if mask is None else mask.copy()
        early[self._stops] = False
        # A grammar that can only end here has the last word.
        return early if early.any() else mask

    def _penalise(self, row: Row) -> None:
        sampling = self._sampling
        if sampling.repetition_penalty != 1.0:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            values = row[seen]
            factor = np.float32(sampling.repetition_penalty)
            row[seen] = np.where(values > 0, values / factor, values * factor)
        if self._counts and (sampling.frequency_penalty or sampling.presence_penalty):
            ids = np.fromiter(self._counts, np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            row[ids] -= counts * np.float32(sampling.frequency_penalty) + np.float32(
                sampling.presence_penalty
            )


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) for one position: Philox keyed by the seed, counter there."""
    bits = np.random.Philox(key=seed & _SEED_MASK, counter=position).random_raw()
    return (int(bits) >> 11) * 2.0**-53


def logprobs(logits: Row, token: int, top: int) -> TokenLogprob:
    """The chosen token's log-probability and those of the `top` most likely, from raw logits."""
    best = logits.max()
    with np.errstate(under="ignore"):
        log_sum = float(np.log(np.exp(logits - best).sum(dtype=np.float64))) + float(best)
    most: tuple[tuple[int, float], ...] = ()
    if top > 0:
        ids = _largest(logits, min(top, len(logits)))
        most = tuple((int(i), float(logits[i]) - log_sum) for i in ids)
    return TokenLogprob(token_id=token, logprob=float(logits[token]) - log_sum, top=most)


def _weights(row: Row, best: np.float32, temperature: float) -> tuple[Ids | None, Row]:
    """The tokens within reach, ascending (None: the whole row), and what each of them weighs.

    `best` weighs 1. The distance to it is divided, not the logits: no overflow however small the
    temperature is.
    """
    divisor = np.float32(max(temperature, 1e-6))
    near = row >= best - _REACH * divisor
    # Of many the indices would take longer than they save.
    few = np.count_nonzero(near) < len(row) // 4
    ids = np.flatnonzero(near) if few else None
    weights = (row if ids is None else row[ids]) - best
    if divisor != 1.0:
        weights /= divisor
    if ids is None:
        np.maximum(weights, -_REACH, out=weights)
    np.exp(weights, out=weights)
    if ids is None:
        weights *= near
    return ids, weights


def _inverse_cdf(weights: Row, number: float) -> int:
    """The first id whose cumulative weight exceeds `number` of the whole."""
    size = len(weights)
    starts = np.arange(0, size, _RUN)
    runs = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = number * runs[-1]
    run = min(int(np.searchsorted(runs, target, side="right")), len(runs) - 1)
    begin = run * _RUN
    before = runs[run - 1] if run else 0.0
    inside = np.cumsum(weights[begin : begin + _RUN], dtype=np.float64) + before
    index = begin + int(np.searchsorted(inside, target, side="right"))
    if index < min(begin + _RUN, size) and weights[index] > 0:
        return index
    # The last of the run by rounding: take the last token that has weight.
    return begin + int(np.flatnonzero(weights[begin : begin + _RUN])[-1])


def _kept(weights: Row, sampling: Sampling) -> Ids | None:
    """The indices that top_k, then top_p, then min_p leave, ascending; None: all of them.

    `weights` are unnormalised probabilities whose largest is 1. No more tokens are sorted than
    hold the mass that top_p asks for, and only their weights are.
    """
    ids: Ids | None = None
    if 0 < sampling.top_k < len(weights):
        ids = _top(weights, sampling.top_k)
    if sampling.top_p < 1.0:
        chosen = weights if ids is None else weights[ids]
        nucleus = _nucleus(chosen, sampling.top_p)
        ids = nucleus if ids is None else ids[nucleus]
    if sampling.min_p > 0.0:
        enough = np.flatnonzero(
            (weights if ids is None else weights[ids]) >= np.float32(sampling.min_p)
        )
        ids = enough if ids is None else ids[enough]
    return ids


def _nucleus(weights: Row, top_p: float) -> Ids:
    """Ascending indices of the fewest largest weights that make up `top_p` of the sum."""
    goal = top_p * float(weights.sum(dtype=np.float64))
    for threshold in (*_LIKELY, np.float32(0)):
        likely = np.flatnonzero(weights >= threshold)
        sums = np.cumsum(np.sort(weights[likely])[::-1], dtype=np.float64)
        if sums[-1] >= goal:
            break
    return likely[_top(weights[likely], int(np.searchsorted(sums, goal, side="left")) + 1)]


def _top(values: Row, count: int) -> Ids:
    """Ascending indices of the `count` largest values; of equals the first."""
    if count >= len(values):
        return np.arange(len(values))
    bound = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > bound)
    equal = np.flatnonzero(values == bound)[: count - len(above)]
    return np.sort(np.concatenate((above, equal)))


def _largest(values: Row, count: int) -> Ids:
    """Indices of the `count` largest values, largest first; equals by index."""
    ids = _top(values, count)
    return ids[np.argsort(-values[ids], kind="stable")]
