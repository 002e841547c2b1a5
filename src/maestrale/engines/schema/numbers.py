"""Regular expressions for the numbers of a range, as JSON writes them.

A free number stays well within a double, exponent and all: `5e419` parses as infinity, or not at
all. In a range numbers are plain decimals of so few digits that no two share a double, so that
what is above a bound as it is written is above it when parsed, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal

DIGITS = 15  # decimals of so many significant digits are all different doubles
INTEGER_DIGITS = 19  # of an integer without bounds: what 64 bits can hold, and no more
HUGE = Decimal("1e300")  # no free number reaches it
MAX_STEP = 2**31 - 1
_EXACT = 2**53
_FREE = (
    rf"-?(?:0|[1-9][0-9]{{0,{INTEGER_DIGITS - 1}}})(?:\.[0-9]{{1,20}})?"
    r"(?:[eE][-+]?(?:0|[1-9][0-9]?|1[0-9][0-9]|2[0-7][0-9]))?"
)


@dataclass(frozen=True)
class Bound:
    value: Decimal
    open: bool = False  # the value itself is out


@dataclass(frozen=True)
class Numbers:
    """Numbers, or integers alone, between bounds; `step` divides them where it isn't 0."""

    integer: bool = False
    low: Bound | None = None
    high: Bound | None = None
    step: int = 0

    def merge(self, other: Numbers) -> Numbers:
        """What both allow."""
        lows = [bound for bound in (self.low, other.low) if bound]
        highs = [bound for bound in (self.high, other.high) if bound]
        return Numbers(
            self.integer or other.integer,
            max(lows, key=lambda bound: (bound.value, bound.open), default=None),
            min(highs, key=lambda bound: (bound.value, not bound.open), default=None),
            math.lcm(self.step, other.step)
            if self.step and other.step
            else self.step or other.step,
        )

    def whole(self) -> Numbers:
        """The same, with bounds that are integers and belong to it; for integers."""
        low, high = self.low, self.high
        if low is not None:
            least = math.ceil(low.value)
            low = Bound(Decimal(least + (low.open and least == low.value)))
        if high is not None:
            most = math.floor(high.value)
            high = Bound(Decimal(most - (high.open and most == high.value)))
        return replace(self, integer=True, low=low, high=high)

    @property
    def empty(self) -> bool:
        """No number is among them."""
        if self.integer or self.step:
            self = self.whole()
        if self.low is None or self.high is None:
            return False
        if self.step:
            return int(self.high.value) // self.step * self.step < int(self.low.value)
        if self.low.value == self.high.value:
            return self.low.open or self.high.open
        return self.low.value > self.high.value

    def accepts(self, value: int | Decimal) -> bool:
        number = Decimal(value)
        if (self.integer or self.step) and number != number.to_integral_value():
            return False
        low, high = self.low, self.high
        if low and (number < low.value or (low.open and number == low.value)):
            return False
        if high and (number > high.value or (high.open and number == high.value)):
            return False
        return not (self.step and int(number) % self.step)


def expression(numbers: Numbers) -> str:
    """A Lark expression for them, without a step. There is at least one."""
    if numbers.integer:
        numbers = numbers.whole()
    low = numbers.low if numbers.low and numbers.low.value > -HUGE else None
    high = numbers.high if numbers.high and numbers.high.value < HUGE else None
    if low is None and high is None and not numbers.integer:
        return f"/{_FREE}/"
    return " | ".join(
        part
        for part in (
            _side("", low, high, numbers.integer, zero=True),
            _side("-", _mirrored(high), _mirrored(low), numbers.integer, zero=False),
        )
        if part
    )


def with_step(numbers: Numbers) -> dict[str, object]:
    """A JSON schema of integers with a step, as llguidance can hold it.

    Raises: ValueError for a step or bounds beyond its numbers.
    """
    numbers = numbers.whole()
    if numbers.step > MAX_STEP:
        raise ValueError(f"the keyword 'multipleOf' can be at most {MAX_STEP}")
    most = 10**DIGITS
    low = -most if numbers.low is None else int(numbers.low.value)
    high = most if numbers.high is None else int(numbers.high.value)
    if low < -_EXACT:
        low = -most
    if high > _EXACT:
        high = most
    if low > high:
        raise ValueError("the keyword 'multipleOf' can't be enforced for integers beyond 2^53")
    return {"type": "integer", "minimum": low, "maximum": high, "multipleOf": numbers.step}


def _mirrored(bound: Bound | None) -> Bound | None:
    return Bound(-bound.value, bound.open) if bound else None


def _side(sign: str, low: Bound | None, high: Bound | None, integer: bool, *, zero: bool) -> str:
    """The numbers of one sign by their magnitude; `zero` is among them, or not. Empty: none."""
    if high is not None and (high.value < 0 or (high.value == 0 and (high.open or not zero))):
        return ""
    if low is None or low.value < 0:
        low = Bound(Decimal(0), open=not zero)
    elif low.value == 0 and not zero:
        low = Bound(low.value, open=True)
    if high is not None and (
        high.value < low.value or (high.value == low.value and (high.open or low.open))
    ):
        return ""
    if integer:
        least = Decimal(math.floor(low.value) + 1) if low.open else low.value
        width = max(INTEGER_DIGITS, _digits(least) + 1)
        if high is not None and low.value > 0:
            width = max(width, _digits(high.value))
        parts = [_at_least(least, open=False, integer=True), f"/[0-9]{{1,{width}}}/"]
    else:
        least, width = low.value, max(DIGITS, _width(low.value)) + 1
        if high is not None and (_digits(high.value) < width or _digits(low.value) > DIGITS):
            width = max(width, _width(high.value) + 1)
        parts = [_at_least(least, low.open, integer=False), f"/[0-9.]{{1,{width}}}/"]
    if high is not None and _digits(high.value) <= width:  # else no number is as long
        parts.append(_at_most(high.value, high.open and not integer, integer=integer))
    body = " & ".join(parts)
    return f'"-" ({body})' if sign else f"({body})"


def _plain(value: Decimal) -> tuple[str, str]:
    """Digits before and after the point, without idle zeros."""
    whole, _, fraction = format(value, "f").partition(".")
    return whole.lstrip("0") or "0", fraction.rstrip("0")


def _digits(value: Decimal) -> int:
    return len(_plain(value)[0])


def _width(value: Decimal) -> int:
    return sum(map(len, _plain(value)))


def _at_least(bound: Decimal, open: bool, integer: bool) -> str:
    whole, fraction = _plain(bound)
    length = len(whole)
    any_fraction = "" if integer else r"(?:\.[0-9]+)?"
    ways = [rf"[1-9][0-9]{{{length},}}{any_fraction}"]
    for index, digit in enumerate(whole):
        if digit != "9":
            rest = length - index - 1
            ways.append(f"{whole[:index]}[{int(digit) + 1}-9][0-9]{{{rest}}}{any_fraction}")
    if integer:
        ways.append(whole)
        return _regex(ways)
    for index, digit in enumerate(fraction):
        if digit != "9":
            ways.append(rf"{whole}\.{fraction[:index]}[{int(digit) + 1}-9][0-9]*")
    same = rf"{whole}\.{fraction}" if fraction else whole
    if open:
        ways.append(f"{same}[0-9]*[1-9][0-9]*" if fraction else rf"{whole}\.[0-9]*[1-9][0-9]*")
    else:
        ways.append(f"{same}[0-9]*" if fraction else rf"{whole}(?:\.[0-9]+)?")
    return _regex(ways)


def _at_most(bound: Decimal, open: bool, integer: bool) -> str:
    whole, fraction = _plain(bound)
    length = len(whole)
    any_fraction = "" if integer else r"(?:\.[0-9]+)?"
    ways = []
    if length > 1:
        ways.append(rf"(?:0|[1-9][0-9]{{0,{length - 2}}}){any_fraction}")
    for index, digit in enumerate(whole):
        least = 1 if index == 0 and length > 1 else 0
        if int(digit) > least:
            rest = length - index - 1
            ways.append(f"{whole[:index]}[{least}-{int(digit) - 1}][0-9]{{{rest}}}{any_fraction}")
    if integer:
        ways.append(whole)
        return _regex(ways)
    for index, digit in enumerate(fraction):
        if digit != "0":
            ways.append(rf"{whole}\.{fraction[:index]}[0-{int(digit) - 1}][0-9]*")
    if fraction:
        ways.append(whole)
        # A beginning of the fraction is less than all of it.
        ways += [rf"{whole}\.{fraction[:index]}" for index in range(1, len(fraction))]
    if not open:
        ways.append(rf"{whole}\.{fraction}0*" if fraction else rf"{whole}(?:\.0+)?")
    return _regex(ways)


def _regex(ways: list[str]) -> str:
    return "/" + "|".join(ways) + "/"
