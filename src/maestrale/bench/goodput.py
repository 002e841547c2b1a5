"""Goodput: answers that keep to all given bounds (`ttft:500ms,tpot:50ms`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from maestrale.bench.statistics import Latency
from maestrale.errors import CannotBench

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
