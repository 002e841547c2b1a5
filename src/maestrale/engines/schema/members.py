"""Rules of what stands in the braces of an object: members in their order, some of them optional.

`{rule}_in` is at least one member; which of them is the first decides where commas stand.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

_COUNT = "[16:32]"  # of the rules' parameter: how many members there are so far
_MOST_COUNTED = 2**16 - 2

GrammarRules = list[tuple[str, list[str]]]
"""Names, each with the ways that lead on from it."""


@dataclass(frozen=True)
class Members:
    """Those with a name, each with whether it is required, and one of another name, or ""."""

    rule: str
    named: tuple[tuple[str, bool], ...]
    other: str
    separator: str

    def at(self, index: int) -> str:
        """The rule of what follows when so many named ones are behind."""
        return f"{self.rule}_{index}"


def free_rules(members: Members) -> GrammarRules:
    """Any number of those that aren't required may be left out."""
    named, other, separator = members.named, members.other, members.separator
    tail = f"({separator} {other})*" if other else ""
    # Up to the first one that is required, each may be the first that is there.
    required = [index for index, (_, must) in enumerate(named) if must]
    starts = required[0] + 1 if required else len(named)
    ways = []
    for index in range(starts):
        parts = [named[index][0]]
        if index + 1 < starts:
            parts.append(f"{members.at(index + 1)}::_")
        else:
            for text, must in named[index + 1 :]:
                parts.append(f"{separator} {text}" if must else f"({separator} {text})?")
            parts.append(tail)
        ways.append(" ".join(parts).rstrip())
    rules = [(members.at(index), [f"{separator} {ways[index]}"]) for index in range(1, starts)]
    for index, (_, skipped) in enumerate(rules, 1):
        if not named[index][1]:
            skipped.append(f"{members.at(index + 1)}::_" if index + 1 < starts else tail or '""')
    if not required and other:
        ways.append(f"{other} {tail}")
    return [(f"{members.rule}_in", ways), *rules]


def counted_rules(members: Members, low: int, high: int | None) -> GrammarRules:
    """From `low` to `high` of them. Raises: ValueError where so many can't be made sure of."""
    named, other, separator = members.named, members.other, members.separator
    low = max(low, 1)
    reachable = len(named) + bool(other)  # of the others each may be the first one again
    if low > reachable or low > _MOST_COUNTED:
        raise ValueError(
            "the keyword 'minProperties' above the number of 'properties' can't be enforced while "
            "decoding"
        )
    if high is not None and high > _MOST_COUNTED:
        high = None
    more = f"incr({_COUNT})"
    rules: GrammarRules = []
    for index, (text, must) in enumerate(named):
        still = sum(later for _, later in named[index + 1 :])
        most = None if high is None else high - still
        ways = _member(f"{text} {members.at(index + 1)}::{more}", separator, most)
        if not must:
            missing = low - (reachable - index - 1)
            enough = f" %if ge({_COUNT}, {missing})" if missing > 0 else ""
            ways.append(f"{members.at(index + 1)}::_{enough}")
        rules.append((members.at(index) if index else f"{members.rule}_in", ways))
    last = [f'"" %if ge({_COUNT}, {low})']
    if other:
        after = f"{other} {members.rule}_more::{more}"
        last += _member(after, separator, high, low - 1)
        rules.append((f"{members.rule}_more", ['""', *_member(after, separator, high, 1)]))
    rules.append((members.at(len(named)) if named else f"{members.rule}_in", last))
    return rules


def _member(text: str, separator: str, most: int | None, least: int = 0) -> list[str]:
    """The ways to one more member, where there are from `least` to below `most` so far."""
    full = [] if most is None else [f"lt({_COUNT}, {most})"]
    some = [f"ge({_COUNT}, {least})"] if least > 1 else []
    first = [] if least else [f"{text} %if {_all_of(f'eq({_COUNT}, 0)', *full)}"]
    return [*first, f"{separator} {text} %if {_all_of(f'gt({_COUNT}, 0)', *full, *some)}"]


def _all_of(*conditions: str) -> str:
    return functools.reduce(lambda one, other: f"and({one}, {other})", conditions)
