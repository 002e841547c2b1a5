"""Limits on requests and tokens a day and a month, for keys that have them.

Days and months are those of UTC, and begin anew at midnight. As with the limits a minute
(api/rate.py), a request sets aside its prompt and the longest answer that it may get before it
runs; one that has no room is refused, so that a limit is never exceeded. What was used is counted
for every key, so a limit that is given to a key later holds from the beginning of the day.
"""

from __future__ import annotations

import datetime
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from maestrale.api.rate import Level
from maestrale.errors import RateLimited
from maestrale.keys import Key, spell_moment
from maestrale.usage import UsageRow, day_of

WINDOWS = ("day", "month")
SOON = 2  # seconds after which it is worth trying again when requests in work hold what is left


class Quotas:
    """What every key has used today and this month, and what its requests in work have set aside.

    Keys are known by their names: a key that is revoked and given anew begins with no fresh day.
    """

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._used: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._held: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._day = ""

    def today(self) -> str:
        """The day that a request belongs to which comes now."""
        day = day_of(self._now())
        if day != self._day:
            self._day = day
            for counts in (self._used, self._held):
                for place in [each for each in counts if each[2] not in (day, day[:7])]:
                    del counts[place]
        return day

    def add(self, rows: Iterable[UsageRow]) -> None:
        """Count what was used."""
        for row in rows:
            for period in (row.day, row.day[:7]):
                self._used[row.key, "requests", period] += row.requests
                self._used[row.key, "tokens", period] += row.tokens

    def hold(self, key: str, what: str, day: str, units: int) -> None:
        """Set so much aside, or give it back: fewer than none."""
        for period in (day, day[:7]):
            self._held[key, what, period] += units

    def check(self, key: Key, what: str, units: int) -> None:
        """Whether the key may use so many more. Raises: RateLimited (429, Retry-After)."""
        day = self.today()
        for window in WINDOWS:
            limit = key.limit(what, window)
            if limit is None:
                continue
            place = (key.name, what, day if window == "day" else day[:7])
            used, held = self._used[place], self._held[place]
            if used + held + units <= limit:
                continue
            rest = self._rest(window)
            when = f"from {spell_moment(round(self._now() + rest))}"
            if used + units <= limit:  # its requests in work may give back what they hold
                rest, when = SOON, "when its requests in work have ended"
            raise RateLimited(
                f"The key {key.name} may use {limit} {what} a {window}"
                f"{_why(what, limit, used + held, units)} There are more {when}.",
                code=f"{what}_per_{window}_exceeded",
                retry_after=math.ceil(rest),
            )

    def levels(self, key: Key) -> list[Level]:
        """Where the key stands with the limits that it has."""
        day = self.today()
        levels = []
        for what in ("requests", "tokens"):
            for window in WINDOWS:
                limit = key.limit(what, window)
                if limit is not None:
                    place = (key.name, what, day if window == "day" else day[:7])
                    left = max(0, limit - self._used[place] - self._held[place])
                    rest = self._rest(window)
                    levels.append(
                        Level(what=what, window=window, limit=limit, remaining=left, full_in=rest)
                    )
        return levels

    def _rest(self, window: str) -> float:
        """Seconds until the next one begins."""
        now = self._now()
        today = datetime.datetime.fromtimestamp(now, datetime.UTC).date()
        ahead = today + datetime.timedelta(days=1) if window == "day" else _next_month(today)
        start = datetime.datetime.combine(ahead, datetime.time(), datetime.UTC)
        return start.timestamp() - now


def _why(what: str, limit: int, taken: int, units: int) -> str:
    if what == "requests":
        return ", and has used them."
    more = ", more than all of them" if units > limit else ""
    return (
        f": {taken} are used or reserved, and this request may take {units}{more}, with its prompt "
        "and the longest answer that it may get. Ask for a shorter one."
    )


def _next_month(day: datetime.date) -> datetime.date:
    return (day.replace(day=28) + datetime.timedelta(days=4)).replace(day=1)
