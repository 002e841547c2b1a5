"""What keys may use and have used: the limits a minute, a day and a month, and the count of it all.

A request takes its place among its key's requests when it comes, sets tokens aside before it runs,
and is settled before its client reads that it has ended: what it used is charged and written, and
what it had set aside is free again. All of it is in one process, where several answer in the
parent, so that limits and counts are exact.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from msgspec import Struct

from maestrale.api.quota import Quotas
from maestrale.api.rate import Level, RateLimiter
from maestrale.api.usage_writer import PATIENCE, UsageWriter
from maestrale.config.settings import Settings
from maestrale.keys import Key
from maestrale.usage import UsageFile, UsageRow


class Charge(Struct):
    """What a request has taken of its key's limits until it is settled.

    `day`: in which it came. `minute`: tokens set aside of the minute's; None: there is no such
    limit. `tokens`: of the day's and the month's.
    """

    number: int
    key: str
    day: str
    requests: int = 0
    tokens: int = 0
    minute: int | None = None


class KeyAccounts:
    """The accounts of all keys, in the process that keeps them. For one event loop."""

    def __init__(
        self,
        usage: UsageFile | None = None,
        *,
        limiter: RateLimiter | None = None,
        quotas: Quotas | None = None,
        observe: Callable[[UsageRow], None] = lambda row: None,
    ) -> None:
        """`observe` is told of all that is charged."""
        self._limiter = limiter if limiter is not None else RateLimiter()
        self._quotas = quotas if quotas is not None else Quotas()
        self._writer = UsageWriter(usage, self._quotas.add)
        self._observe = observe
        self._open: dict[int, Charge] = {}
        self._numbers = 0

    def take_request(self, key: Key | None) -> Charge | None:
        """Count one request; None: there is no limit to it. Raises: RateLimited."""
        if key is None or not limits(key, "requests"):
            return None
        self._writer.begin()
        self._quotas.check(key, "requests", 1)
        self._limiter.take_request(key)
        charge = self._charge(key)
        charge.requests = 1
        self._quotas.hold(key.name, "requests", charge.day, 1)
        return charge

    def reserve(self, key: Key | None, tokens: int, number: int | None = None) -> Charge | None:
        """Set tokens aside for the request with the charge of this number, if it has one.

        None: there is no limit to them. Raises: RateLimited.
        """
        if key is None or not limits(key, "tokens"):
            return None
        self._writer.begin()
        self._quotas.check(key, "tokens", tokens)
        minute = self._limiter.reserve(key, tokens)
        charge = self._charge(key) if number is None else self._open[number]
        charge.tokens, charge.minute = tokens, minute
        self._quotas.hold(key.name, "tokens", charge.day, tokens)
        return charge

    def settle(self, key: Key | None, number: int | None, row: UsageRow) -> asyncio.Future[None]:
        """A request has ended that used this, and had a charge of this number, if any.

        Done when it is written, or can't be now.
        """
        charge = None if number is None else self._open.get(number)
        if charge is not None:
            self._limiter.settle(key, charge.minute, row.tokens)
            self.drop(charge.number)
        if row.empty:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        self._quotas.add([row])
        self._observe(row)
        return self._writer.write(row)

    def drop(self, number: int) -> None:
        """What this charge had set aside is free again."""
        charge = self._open.pop(number, None)
        if charge is not None:
            self._quotas.hold(charge.key, "requests", charge.day, -charge.requests)
            self._quotas.hold(charge.key, "tokens", charge.day, -charge.tokens)

    def levels(self, key: Key | None, reserved: int | None = None) -> list[Level]:
        """Where the key stands with its limits; `reserved`: tokens of this request's minute."""
        if key is None:
            return []
        return [*self._limiter.levels(key, reserved), *self._quotas.levels(key)]

    async def close(self) -> None:
        """Write what is left."""
        await self._writer.close()

    def _charge(self, key: Key) -> Charge:
        self._numbers += 1
        charge = Charge(self._numbers, key.name, self._quotas.today())
        self._open[charge.number] = charge
        return charge


class Accounts:
    """The accounts as the routes ask for them, wherever they are kept; here: in this process."""

    def __init__(self, kept: KeyAccounts) -> None:
        self.kept = kept

    async def take_request(self, key: Key | None) -> Charge | None:
        """See `KeyAccounts.take_request`."""
        return self.kept.take_request(key)

    async def reserve(self, key: Key | None, tokens: int, charge: Charge | None) -> Charge | None:
        """See `KeyAccounts.reserve`; the charge that the request has from now on."""
        return self.kept.reserve(key, tokens, number_of(charge)) or charge

    async def settle(self, key: Key | None, charge: Charge | None, row: UsageRow) -> None:
        """See `KeyAccounts.settle`; waits for that, within bounds."""
        done = self.kept.settle(key, number_of(charge), row)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(done), PATIENCE)

    async def levels(self, key: Key | None, charge: Charge | None) -> list[Level]:
        """See `KeyAccounts.levels`."""
        return self.kept.levels(key, None if charge is None else charge.minute)

    async def close(self) -> None:
        """See `KeyAccounts.close`."""
        await self.kept.close()


def number_of(charge: Charge | None) -> int | None:
    """By which those who keep the accounts know it."""
    return None if charge is None else charge.number


def limits(key: Key, what: str) -> bool:
    """Whether the key has any limit on requests, or on tokens."""
    return any(key.limit(what, window) is not None for window in ("minute", "day", "month"))


def usage_file(settings: Settings) -> UsageFile | None:
    """Where a server with these settings counts; None: nowhere."""
    return None if settings.usage_path is None else UsageFile(settings.usage_path)
