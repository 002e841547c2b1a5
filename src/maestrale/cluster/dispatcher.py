"""Gives the ledger's requests to replicas through Ray Serve, whose router chooses one for each.

What the ledger does for one engine (`supervise/ledger.py`) it does here for many: a request whose
replica is lost goes to another one of the same fingerprint, gives again the tokens that its client
has, which are compared, and goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from maestrale.cluster.routing_table import PendingRequest, RoutingTable
from maestrale.engines.base import EngineInfo, GenerationRequest
from maestrale.errors import ConstraintError, EngineError, ReplayMismatch, Unavailable
from maestrale.supervise.ledger import Entry, Ledger
from maestrale.supervise.messages import Delta, RequestFailed

if TYPE_CHECKING:
    from maestrale.cluster.replica_pool import ReplicaPool

_encoder = msgspec.msgpack.Encoder()
logger = logging.getLogger(__name__)


class _Run:
    """One run of a request: on its way to a replica, or there."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.replica = ""  # where it runs, once that is known
        self.call: asyncio.Task[None] | None = None


class Dispatcher:
    """The ledger's way to the replicas. `pool` is set before the first request.

    Requests end with an error at `most_failures` deaths of engines without progress within
    `window` seconds, if no replica is left then (`gave_up` says so); and when no replica that can
    go on with them came for so long.
    """

    pool: ReplicaPool

    def __init__(self, api: str, table: RoutingTable, most_failures: int, window: float) -> None:
        self.ledger = Ledger(self, single=False, prefix=f"{api}/")
        self.gave_up = ""
        self.ended = asyncio.Event()  # a run of a request
        self._api = api
        self._table = table
        self._most = most_failures
        self._window = window
        self._runs: dict[str, _Run] = {}  # by wire id
        self._calls: set[asyncio.Task[None]] = set()
        self._waiting: dict[int, float] = {}  # by id() of a begun entry: since when
        self._deaths: deque[tuple[float, str]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that no replica has."""
        return len(self.ledger) - sum(1 for run in self._runs.values() if run.replica)

    def tick(self) -> None:
        """Time passed: nobody waits for ever for a replica that can go on with an answer."""
        waiting = [
            entry
            for entry in self.ledger
            if entry.wire_id is None and entry.begun and self.engine_for(entry) is None
        ]
        now = time.monotonic()
        self._waiting = {id(entry): self._waiting.get(id(entry), now) for entry in waiting}
        for entry in waiting:
            if now - self._waiting[id(entry)] > self._window:
                self.ledger.end(entry, ReplayMismatch(self._no_twin(entry)))

    async def leave(self) -> None:
        """Of calls that are still on their way nothing is left."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    # For the ledger

    def engine_for(self, entry: Entry) -> EngineInfo | None:
        """What can go on with it; for a new request, what most replicas are."""
        info = self.pool.infos.get(entry.fingerprint) if entry.begun else self.pool.info
        usable = info is not None and self.pool.usable_of(info.fingerprint)
        return info if usable else None

    def submit(self, request: GenerationRequest) -> None:
        """Give it to Ray Serve, whose router asks the routing table for a replica."""
        wire_id = request.request_id
        entry = self.ledger.entry(wire_id)
        run = self._runs[wire_id] = _Run(entry.fingerprint)
        self._table.pending[wire_id] = PendingRequest(request.prompt, run.fingerprint)
        run.call = asyncio.create_task(self._call(wire_id, _encoder.encode(request)))
        self._calls.add(run.call)
        run.call.add_done_callback(self._calls.discard)

    def abort(self, wire_id: str) -> None:
        """Stop this run, wherever it is."""
        run = self._runs.get(wire_id)
        if run is None:
            return
        there = self.pool.holding(run.replica, wire_id) if run.replica else None
        if there is not None:
            there.abort(wire_id)
        elif run.call is not None:
            run.call.cancel()  # it is on its way; if it arrived, `routed` aborts it
        self.released(wire_id)

    def released(self, wire_id: str) -> None:
        """The run is over."""
        run = self._drop(wire_id)
        if run is not None and run.replica:
            there = self.pool.holding(run.replica, wire_id)
            if there is not None:
                self.pool.released(there, wire_id)

    # For the router

    def routed(self, wire_id: str, name: str) -> None:
        """The replica `name` has this run of a request."""
        run = self._runs.get(wire_id)
        there = self.pool.named(name)
        if run is None:
            self._table.settled(wire_id)
            if there is not None:
                there.abort(wire_id)
        elif there is None or there.state == "lost":
            self._again(wire_id)
        else:
            run.replica = name
            self.pool.assigned(there, wire_id)

    # For the pool

    def replicas_changed(self) -> None:
        """What waits may go; what is on its way to replicas that are all gone goes anew."""
        if self.pool.usable():
            self.gave_up = ""
        for wire_id, run in tuple(self._runs.items()):
            if run.replica or self.pool.usable_of(run.fingerprint):
                continue
            if run.call is not None:
                run.call.cancel()  # if it has arrived after all, `routed` aborts it
            self._drop(wire_id)
            self.ledger.withdraw(wire_id)
        self.ledger.submit_waiting()

    def replica_lost(self, wire_ids: set[str], reason: str, blamed: bool) -> None:
        """These runs are lost with their replica; `blamed`: its engine died in its work."""
        for wire_id in wire_ids:
            self._drop(wire_id)
        if self.ledger.lost(wire_ids, blamed=blamed):
            self._note_death(reason)

    def waits_for(self, wire_id: str) -> bool:
        return wire_id in self._runs

    def replica_said(self, message: Delta | RequestFailed) -> None:
        if isinstance(message, Delta):
            self.ledger.delta(message.request_id, message.delta)
        else:
            kind = ConstraintError if message.constraint else EngineError
            self.ledger.failed(message.request_id, kind(message.message))

    # Within

    async def _call(self, wire_id: str, payload: bytes) -> None:
        """The call lasts as long as the request: so Ray Serve counts it."""
        handle: Any = self.pool.handle
        try:
            await handle.run.remote(self._api, wire_id, payload)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # Ray's many, all of which mean that it did not run to its end
            logger.debug("A call of a replica failed: %s", error)
            await asyncio.sleep(0.05)  # the stream's own news, if any, is better
            if wire_id in self._runs:
                self._again(wire_id)

    def _again(self, wire_id: str) -> None:
        """It did not run to its end there, and that is nobody's fault."""
        self._drop(wire_id)
        self.ledger.lost((wire_id,), blamed=False)
        self.ledger.submit_waiting()

    def _drop(self, wire_id: str) -> _Run | None:
        """It runs nowhere, as far as we care."""
        self._table.settled(wire_id)
        self.ended.set()
        return self._runs.pop(wire_id, None)

    def _note_death(self, reason: str) -> None:
        now = time.monotonic()
        self._deaths.append((now, reason))
        while now - self._deaths[0][0] > self._window:
            self._deaths.popleft()
        if len(self._deaths) >= self._most and not self.pool.usable():
            self.gave_up = (
                f"The engines of all replicas failed, {len(self._deaths)} times within "
                f"{self._window:.0f} seconds (last: {reason}). They are being restarted; try "
                "again later."
            )
            logger.error("%s", self.gave_up)
            self.ledger.fail_all(Unavailable(self.gave_up, retry_after=5))

    def _no_twin(self, entry: Entry) -> str:
        return (
            "The engine that began this answer stopped, and no replica of the same fingerprint "
            f"({entry.fingerprint}) came within {self._window:.0f} seconds, so nobody can "
            "go on with it. Send the request again."
        )
