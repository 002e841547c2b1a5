"""Limits on requests and tokens a minute, for keys that have them (a day, a month: api/quota.py).

Each limit is a token bucket: it holds one minute's worth and fills evenly. A request pays for
itself, its prompt and the longest answer that it may get before it runs, and gets back what it
didn't use; so requests at once can't use what is there only once. One that may take more than a
minute's worth waits for a full bucket and has all of it: what it uses beyond is a debt, which must
be filled up before the next request.

Where several processes answer for one server the buckets are their parent's (api/accounts.py), so
that a limit is as exact as with one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from maestrale.errors import RateLimited
from maestrale.keys import Key

MINUTE = 60.0


class Bucket:
    """Up to `limit` units, filled at `limit` a minute."""

    __slots__ = ("_at", "_clock", "_level", "limit")

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self.limit = limit
        self._clock = clock
        self._level = float(limit)
        self._at = clock()

    def level(self) -> float:
        """Units there now; negative is debt."""
        now = self._clock()
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / MINUTE)
        self._at = now
        return self._level

    def seconds_until(self, units: float) -> float:
        """Time until that many units are there (at most `limit` ever are)."""
        missing = min(units, self.limit) - self.level()
        return max(0.0, missing * MINUTE / self.limit)

    def take(self, units: float) -> None:
        """Take units out, into debt if need be; fewer than none are given back."""
        self._level = min(self.limit, self.level() - units)


class Level(Struct, frozen=True, kw_only=True):
    """Where a key stands with one of its limits; of `what`: "requests" or "tokens".

    `window`: a "minute", "day" or "month". `full_in`: seconds until all of it is there.
    `reserved`: set aside for this request.
    """

    what: str
    window: str = "minute"
    limit: int
    remaining: int
    full_in: float
    reserved: int | None = None


class RateLimiter:
    """The buckets of all keys with limits. Keys without limits cost nothing here."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str, int], Bucket] = {}

    def take_request(self, key: Key | None) -> None:
        """Count one request. Raises: RateLimited (429, Retry-After)."""
        bucket = self._bucket(key, "requests")
        if key is None or bucket is None:
            return
        self._take(key, "requests", bucket, 1)

    def reserve(self, key: Key | None, tokens: int) -> int | None:
        """Set tokens aside for a request, a minute's worth at most; how many, for `settle`.

        None: the key has no limit. Raises: RateLimited (429, Retry-After).
        """
        bucket = self._bucket(key, "tokens")
        if key is None or bucket is None:
            return None
        reserved = min(tokens, bucket.limit)
        self._take(key, "tokens", bucket, reserved)
        return reserved

    def settle(self, key: Key | None, reserved: int | None, used: int) -> None:
        """The request has ended: give back what it didn't use, or charge what it used beyond."""
        bucket = self._bucket(key, "tokens")
        if bucket is not None and reserved is not None:
            bucket.take(used - reserved)

    def levels(self, key: Key | None, reserved: int | None = None) -> list[Level]:
        """Where the key stands with the limits that it has; `reserved`: tokens of this request."""
        levels = []
        for what in ("requests", "tokens"):
            bucket = self._bucket(key, what)
            if bucket is not None:
                left = max(0, math.floor(bucket.level()))
                rest = bucket.seconds_until(bucket.limit)
                levels.append(
                    Level(
                        what=what,
                        limit=bucket.limit,
                        remaining=left,
                        full_in=rest,
                        reserved=reserved if what == "tokens" else None,
                    )
                )
        return levels

    def _take(self, key: Key, what: str, bucket: Bucket, units: float) -> None:
        """Raises: RateLimited."""
        wait = bucket.seconds_until(units)
        if wait:
            raise _limited(key, what, bucket.limit, wait)
        bucket.take(units)

    def _bucket(self, key: Key | None, what: str) -> Bucket | None:
        if key is None:
            return None
        limit = key.limit(what, "minute")
        if limit is None:
            return None
        # Of a limit that was changed in the key file, some processes may know sooner than others.
        name = (key.identity, what, limit)
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(limit, self._clock)
        return bucket


def tightest(levels: Sequence[Level]) -> list[Level]:
    """Of the limits on requests and of those on tokens the one each with the least left."""
    found: dict[str, Level] = {}
    for level in levels:
        known = found.get(level.what)
        if known is None or level.remaining < known.remaining:
            found[level.what] = level
    return list(found.values())


def _limited(key: Key, what: str, limit: int, wait: float) -> RateLimited:
    retry_after = max(1, math.ceil(wait))
    return RateLimited(
        f"The key {key.name} may use {limit} {what} a minute, and has"
        f"{' used or reserved them' if what == 'tokens' else ''}. Try again in {retry_after} s.",
        code=f"{what}_per_minute_exceeded",
        retry_after=retry_after,
    )
