"""What a value may be: shapes of one JSON type each, and what two of them have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from maestrale.engines.schema.document import NOTHING, Conjunction
from maestrale.engines.schema.numbers import Numbers
from maestrale.engines.schema.strings import Strings, matches

Value = Any
"""JSON: None, a bool, int, Decimal, str, list or dict."""


@dataclass(frozen=True, eq=False)
class Literals:
    """These very values."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Arrays:
    """`rest` describes the items after `first`; None: nothing was said of them."""

    first: tuple[Conjunction, ...] = ()
    rest: Conjunction | None = None
    low: int | None = None
    high: int | None = None

    def item(self, index: int) -> Conjunction:
        return self.first[index] if index < len(self.first) else self.rest or ()

    @property
    def longest(self) -> int | None:
        """The most items there may be. A list of items that is not said to go on ends there."""
        high = self.high
        if self.rest is None and self.first:
            high = min(max(len(self.first), self.low or 0), high if high is not None else 10**9)
        return high

    def merge(self, other: Arrays) -> Arrays:
        """What both allow."""
        first = tuple(
            joined(self.item(index), other.item(index))
            for index in range(max(len(self.first), len(other.first)))
        )
        rest = self.rest
        if other.rest is not None:
            rest = joined(self.rest or (), other.rest)
        lows = [low for low in (self.low, other.low) if low is not None]
        highs = [high for high in (self.high, other.high) if high is not None]
        return Arrays(first, rest, max(lows, default=None), min(highs, default=None))


@dataclass(frozen=True)
class Objects:
    """`additional` describes the properties not named; None: nothing was said of them."""

    properties: tuple[tuple[str, Conjunction], ...] = ()
    required: tuple[str, ...] = ()
    additional: Conjunction | None = None
    patterns: tuple[tuple[str, Conjunction], ...] = ()
    names: Conjunction = ()  # what the names have to be
    low: int = 0
    high: int | None = None
    described: bool = False  # some of its properties are

    @functools.cached_property
    def _named(self) -> dict[str, Conjunction]:
        return dict(self.properties)

    @property
    def open(self) -> bool:
        """Others than the properties that are named may be there.

        Where nothing is said of them, and some are named, a model would make them up.
        """
        if self.additional is None and self.described:
            named = {*self._named, *self.required}
            return self.low > len(named) + bool(self.patterns)
        return self.additional != (NOTHING,)

    def property(self, name: str) -> Conjunction:
        """What holds for a property of this name."""
        if name in self._named:
            return self._named[name]
        found = [conjunction for pattern, conjunction in self.patterns if matches(pattern, name)]
        if not found:
            return self.additional or ()
        return joined(*found)

    def merge(self, other: Objects) -> Objects:
        """What both allow, in the order of the first one's properties."""
        names = dict.fromkeys(name for name, _ in self.properties + other.properties)
        patterns = {
            pattern: joined(conjunction, other.additional or ())
            for pattern, conjunction in self.patterns
        }
        for pattern, conjunction in other.patterns:
            known = dict(self.patterns).get(pattern, self.additional or ())
            patterns[pattern] = joined(known, conjunction)
        additional = self.additional
        if other.additional is not None:
            additional = joined(self.additional or (), other.additional)
        highs = [high for high in (self.high, other.high) if high is not None]
        return Objects(
            tuple((name, joined(self.property(name), other.property(name))) for name in names),
            tuple(dict.fromkeys(self.required + other.required)),
            additional,
            tuple(patterns.items()),
            joined(self.names, other.names),
            max(self.low, other.low),
            min(highs, default=None),
            self.described or other.described,
        )


Shape = Literals | Numbers | Strings | Arrays | Objects
Shapes = tuple[Shape, ...]
"""Alternatives: a value has one of them."""
ANYTHING: tuple[Shape, ...] = (
    Literals((None,)),
    Literals((True, False)),
    Numbers(),
    Strings(),
    Arrays(),
    Objects(),
)


def joined(*conjunctions: Conjunction) -> Conjunction:
    """All of them at once."""
    numbers = tuple(dict.fromkeys(number for each in conjunctions for number in each))
    return (NOTHING,) if NOTHING in numbers else numbers


def common(a: Shape, b: Shape, accepts: Callable[[Shape, Value], bool]) -> Shape | None:
    """What both allow; None where that is nothing, as far as can be seen from outside."""
    if isinstance(b, Literals) and not isinstance(a, Literals):
        a, b = b, a
    if isinstance(a, Literals):
        values = tuple(value for value in a.values if accepts(b, value))
        return Literals(values) if values else None
    for kind in (Numbers, Strings, Arrays, Objects):
        if isinstance(a, kind) and isinstance(b, kind):
            shape: Shape = a.merge(b)  # type: ignore[arg-type]
            return None if empty(shape) else shape
    return None


def empty(shape: Shape) -> bool:
    """No value has it, as far as can be seen from outside."""
    if isinstance(shape, Literals):
        return not shape.values
    if isinstance(shape, Numbers | Strings):
        return shape.empty
    least = shape.low or 0
    if isinstance(shape, Objects):
        least = max(least, len(shape.required))
    return shape.high is not None and least > shape.high


def same(a: Value, b: Value) -> bool:
    """Equal as JSON has it: 1 is 1.0, and true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, int | Decimal) and isinstance(b, int | Decimal):
        return a == b
    return type(a) is type(b) and bool(a == b)


def sealed(shape: Objects) -> Objects:
    """The object with nothing but what it names, said aloud."""
    return shape if shape.open else replace(shape, additional=(NOTHING,))
