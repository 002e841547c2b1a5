"""Percentiles and what is derived from the times of one answer. Times in seconds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from maestrale.bench.client import Exchange


class Summary(msgspec.Struct, frozen=True):
    """Of a sample: its size, mean, percentiles and maximum. All 0 where it is empty."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of an ascending, non-empty sample; between two values linearly, as numpy's default."""
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    share = position - below
    return ordered[below] * (1 - share) + ordered[above] * share


def summarise(sample: Sequence[float]) -> Summary:
    if not sample:
        return Summary()
    ordered = sorted(sample)
    return Summary(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


class Latency(msgspec.Struct, frozen=True):
    """Of one good answer. `tpot` is None for an answer of one token."""

    ttft: float
    e2e: float
    tpot: float | None
    itl: tuple[float, ...]
    """Pauses between arrivals of text; one arrival may bring several tokens."""


def latency(exchange: Exchange) -> Latency | None:
    """None where the answer failed."""
    if exchange.error is not None or exchange.first_token is None or exchange.usage is None:
        return None
    times = exchange.times
    last = times[-1] if times else exchange.first_token
    tokens = exchange.usage.completion_tokens
    return Latency(
        ttft=exchange.first_token - exchange.started,
        e2e=exchange.ended - exchange.started,
        tpot=(last - exchange.first_token) / (tokens - 1) if tokens > 1 else None,
        itl=tuple(later - earlier for earlier, later in itertools.pairwise(times)),
    )


def tokens_within(exchange: Exchange, begin: float, end: float) -> float:
    """The completion tokens that arrived from `begin` to `end`.

    The server's count for the whole answer, shared out evenly over its arrivals.
    """
    if exchange.usage is None:
        return 0.0
    times = exchange.times or [exchange.ended]
    inside = sum(begin <= time <= end for time in times)
    return exchange.usage.completion_tokens * inside / len(times)
