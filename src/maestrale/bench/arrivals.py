"""When requests come in an open loop: a Poisson process, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Times of arrival in seconds from the start, without end; `rate` > 0 a second on average.

    The gaps are independent and exponential, as those of many users who don't know of each
    other: now and then a burst, now and then a pause.
    """
    generator = random.Random(f"arrivals {seed}")  # noqa: S311 - repeatable, no secret
    time = 0.0
    while True:
        time += generator.expovariate(rate)
        yield time
