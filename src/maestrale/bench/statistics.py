"""Percentiles and what is derived from the times of one answer. Times in seconds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from maestrale.bench.client import Exchange
from maestrale.errors import CannotBench


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


BOUNDS = ("ttft", "tpot", "itl", "e2e")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_PART = re.compile(r"([a-z0-9]+)[:=<]([0-9]+(?:\.[0-9]+)?)(us|ms|s|m)")


@dataclass(frozen=True)
class Bounds:
    """Most seconds for each measure named; `itl` is held against an answer's longest pause."""

    most: dict[str, float]

    def met(self, found: Latency) -> bool:
        values = {
            "ttft": found.ttft,
            "tpot": found.tpot or 0.0,
            "itl": max(found.itl, default=0.0),
            "e2e": found.e2e,
        }
        return all(values[name] <= most for name, most in self.most.items())

    def __str__(self) -> str:
        return ", ".join(f"{name} ≤ {_spelled(most)}" for name, most in self.most.items())


def parse_bounds(text: str) -> Bounds:
    """Read bounds as `ttft:500ms,tpot:50ms`. Raises: CannotBench."""
    most: dict[str, float] = {}
    for part in text.replace(" ", "").split(","):
        match = _PART.fullmatch(part)
        if match is None or match[1] not in BOUNDS:
            raise CannotBench(
                f"--slo: {part!r} is no bound. Write one of {', '.join(BOUNDS)}, a colon, and a "
                "time with its unit: ttft:500ms,tpot:50ms."
            )
        if match[1] in most:
            raise CannotBench(f"--slo: {match[1]} is bounded twice.")
        most[match[1]] = float(match[2]) * _UNITS[match[3]]
    return Bounds(most)


def _spelled(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
