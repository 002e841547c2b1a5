"""Frequencies of rotary embeddings: plain, linear, llama3, YaRN, longrope, factors from the file.

Computed in double precision and rounded once, so that they don't depend on the machine. Settings
that give no finite frequencies are an ArithmeticError or a ValueError.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from maestrale.engines.cpu.spec import Rope


@dataclass(frozen=True)
class Yarn:
    """YaRN's settings. `attention_factor` 0: made from the others, as transformers does."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all: float = 0.0
    attention_factor: float = 0.0
    truncate: bool = True


def plain(dims: int, theta: float, factor: float = 1.0) -> Rope:
    """theta^(-2i/dims), divided by a linear `factor`."""
    return Rope(_rounded(each / factor for each in _frequencies(dims, theta)))


def divided(dims: int, theta: float, factors: Sequence[float]) -> Rope:
    """Each frequency divided by its factor, as in a GGUF file's `rope_freqs`."""
    pairs = zip(_frequencies(dims, theta), factors, strict=True)
    return Rope(_rounded(frequency / factor for frequency, factor in pairs))


def llama3(
    dims: int, theta: float, factor: float, low: float, high: float, original_context: int
) -> Rope:
    """Llama 3.1's: long waves are stretched by `factor`, short ones stay, between them a blend."""

    def scaled(frequency: float) -> float:
        wave = 2 * math.pi / frequency
        if wave < original_context / high:
            return frequency
        if wave > original_context / low:
            return frequency / factor
        blend = (original_context / wave - low) / (high - low)
        return (1 - blend) * frequency / factor + blend * frequency

    return Rope(_rounded(map(scaled, _frequencies(dims, theta))))


def yarn(dims: int, theta: float, given: Yarn) -> Rope:
    """YaRN (https://arxiv.org/abs/2309.00071): a ramp between stretched and plain frequencies."""

    def dimension(rotations: float) -> float:
        turns = given.original_context / (rotations * 2 * math.pi)
        return dims * math.log(turns) / (2 * math.log(theta))

    low, high = dimension(given.beta_fast), dimension(given.beta_slow)
    if given.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001

    def blended(i: int, frequency: float) -> float:
        stretched = min(max((i - low) / (high - low), 0.0), 1.0)
        return frequency / given.factor * stretched + frequency * (1 - stretched)

    frequencies = _rounded(blended(i, each) for i, each in enumerate(_frequencies(dims, theta)))
    return Rope(frequencies, _rounded([_yarn_scale(given)])[0])


def longrope(
    dims: int, theta: float, short: Sequence[float], long: Sequence[float], scale: float
) -> Rope:
    """Phi's: a factor for each frequency, others for short contexts than for long ones."""
    return Rope(
        divided(dims, theta, short).inverse_frequencies,
        _rounded([scale])[0],
        divided(dims, theta, long).inverse_frequencies,
    )


def longrope_scale(factor: float, original_context: int) -> float:
    """What longrope multiplies sines and cosines by where the model doesn't say."""
    if factor <= 1 or original_context <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_context))


def _yarn_scale(given: Yarn) -> float:
    if given.attention_factor:
        return given.attention_factor

    def grown(mscale: float) -> float:
        return 1.0 if given.factor <= 1 else 0.1 * mscale * math.log(given.factor) + 1.0

    if given.mscale and given.mscale_all:
        return grown(given.mscale) / grown(given.mscale_all)
    return grown(1.0)


def _frequencies(dims: int, theta: float) -> list[float]:
    if theta <= 1:
        raise ValueError(theta)
    return [theta ** (-2 * i / dims) for i in range(dims // 2)]


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    """As float32 has them."""
    listed = list(values)
    if not all(map(math.isfinite, listed)):
        raise ValueError(listed)
    return struct.unpack(f"{len(listed)}f", struct.pack(f"{len(listed)}f", *listed))
