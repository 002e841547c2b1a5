"""`truncation: auto`: the oldest items are left out until the rest has room in the context."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from maestrale.api.openai.responses.items import Item

Fits = Callable[[Sequence[Item]], Awaitable[bool]]


def cuts(items: Sequence[Item]) -> list[Sequence[Item]]:
    """What is left after each further cut, the longest first; always without half an exchange.

    First the oldest turns go, each with the user's message that began it. Of the last turn the
    message stays, and its calls go with what they gave, the oldest first. System messages stay.
    """
    starts = [index for index, item in enumerate(items) if item.role == "user"]
    rests: list[Sequence[Item]] = [items]
    rests += [_rest(items, start) for start in starts[1:]]
    if starts:
        last = starts[-1]
        rests += [
            _rest(items, index + 1, last)
            for index in range(last + 1, len(items) - 1)
            if items[index].kind == "output" and items[index + 1].kind != "output"
        ]
    return rests


def _rest(items: Sequence[Item], start: int, kept: int | None = None) -> Sequence[Item]:
    """The items from `start` on, and what stays of those before."""
    return [
        item
        for index, item in enumerate(items)
        if index >= start or index == kept or item.role == "system"
    ]


async def truncated(items: Sequence[Item], fits: Fits) -> Sequence[Item]:
    """The longest rest that fits; the shortest where none does."""
    left = cuts(items)
    low, high = 0, len(left) - 1
    while low < high:
        middle = (low + high) // 2
        if await fits(left[middle]):
            high = middle
        else:
            low = middle + 1
    return left[low]
