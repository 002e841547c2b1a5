"""Requests in flight over the replicas: given to one, and to another when that one is lost.

Each that goes on elsewhere gives again the tokens that its client has, which are compared
(`supervise/replay.py`), and goes on. It goes only to a replica of the same fingerprint.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from maestrale.cluster.flights import Flight, Trials
from maestrale.cluster.routing_table import RoutingTable, Wanted
from maestrale.engines.base import GenerationRequest
from maestrale.errors import (
    ConstraintError,
    EngineError,
    MaestraleError,
    ReplayMismatch,
    Unavailable,
)
from maestrale.supervise.messages import Delta, RequestFailed
from maestrale.supervise.replay import Counters

if TYPE_CHECKING:
    from maestrale.cluster.replica_pool import ReplicaPool

_REFUSED = (
    "The engine stopped each time that it ran this request, on several replicas, so the request "
    "is refused. Other requests go on."
)
_encoder = msgspec.msgpack.Encoder()
logger = logging.getLogger(__name__)


class Dispatcher:
    """The ledger. `fleet` is set before the first request.

    Requests end with an error at `most_failures` deaths of engines within `window` seconds, if no
    replica is left then (`gave_up` says so); and when no replica that can go on with them came
    for so long.
    """

    fleet: ReplicaPool

    def __init__(
        self, api: str, directory: RoutingTable, most_failures: int, window: float
    ) -> None:
        self.counters = Counters()
        self.trials = Trials()
        self.gave_up = ""
        self.landed = asyncio.Event()  # a request ended
        self._api = api
        self._directory = directory
        self._most = most_failures
        self._window = window
        self._runs = 0
        self._flights: dict[int, Flight] = {}
        self._wires: dict[str, Flight] = {}
        self._deaths: deque[tuple[float, str]] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def waiting(self) -> int:
        """Requests that no replica has."""
        return sum(1 for flight in self._flights.values() if not flight.replica)

    def begin(self, request: GenerationRequest) -> Flight:
        flight = Flight(request, "")
        self._flights[id(flight)] = flight
        self._submit(flight)
        return flight

    def forget(self, flight: Flight) -> None:
        """Its reader is gone, or it ended: no replica works on it any more."""
        self._flights.pop(id(flight), None)
        self.landed.set()
        if flight.wire_id:
            link = self.fleet.holding(flight.replica, flight.wire_id) if flight.replica else None
            if link is not None:
                link.abort(flight.wire_id)
            elif flight.call is not None:
                flight.call.cancel()  # it is on its way; if it arrived, `routed` aborts it
            self._finish(flight)
        self._next_trial(flight)

    def end_all(self, error: MaestraleError) -> None:
        for flight in tuple(self._flights.values()):
            self._end(flight, error)

    def tick(self) -> None:
        """Time passed: nobody waits for ever for a replica that can go on with an answer."""
        for flight in tuple(self._flights.values()):
            since = flight.waiting_since
            if since is None or flight.suspect:
                continue
            if flight.entry.begun and time.monotonic() - since > self._window:
                self._end(flight, ReplayMismatch(self._no_twin(flight)))

    async def leave(self) -> None:
        """Of calls that are still on their way nothing is left."""
        calls = [flight.call for flight in self._flights.values() if flight.call is not None]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    # For the router

    def routed(self, wire_id: str, name: str) -> None:
        """The replica `name` has this run of a request."""
        flight = self._wires.get(wire_id)
        link = self.fleet.named(name)
        if flight is None:
            self._directory.settled(wire_id)
            if link is not None:
                link.abort(wire_id)
            return
        if link is None or link.state == "lost":
            self._unwire(flight)
            self._submit(flight)
            return
        flight.replica = name
        self.fleet.boarded(link, wire_id)

    # For the fleet

    def replicas_changed(self) -> None:
        """What waits may go; what is on its way to replicas that are all gone goes anew."""
        if self.fleet.usable():
            self.gave_up = ""
        for flight in tuple(self._flights.values()):
            if flight.wire_id and not flight.replica:
                if self.fleet.usable_of(flight.entry.fingerprint):
                    continue
                if flight.call is not None:
                    flight.call.cancel()  # if it has arrived after all, `routed` aborts it
                flight.runs -= 1
                self._unwire(flight)
            if not flight.wire_id and not self.gave_up:
                self._submit(flight)

    def replica_lost(self, wire_ids: set[str], reason: str, engine_died: bool) -> None:
        """These runs are lost with their replica."""
        lost = [self._wires[wire] for wire in wire_ids if wire in self._wires]
        if engine_died:
            self._note_death(reason)
        for flight in lost:
            if engine_died:
                flight.strike()
            self._unwire(flight)
        for flight in lost:
            if flight.refused:
                logger.error("A request stops the engine wherever it runs; it is refused.")
                self.counters.refused += 1
                self._end(flight, EngineError(_REFUSED))
            elif not self.gave_up:
                self._submit(flight)

    def is_wanted(self, wire_id: str) -> bool:
        return wire_id in self._wires

    def replica_said(self, message: Delta | RequestFailed) -> None:
        flight = self._wires.get(message.request_id)
        if flight is None:
            return  # aborted meanwhile
        if isinstance(message, RequestFailed):
            kind = ConstraintError if message.constraint else EngineError
            self._end(flight, kind(message.message))
            return
        try:
            new = flight.entry.receive(message.delta)
        except ReplayMismatch as error:
            logger.error("A replayed request gave other tokens than before; it ends in an error.")
            self.counters.mismatched += 1
            self._end(flight, error)
            return
        if new is None:
            return
        flight.entry.mailbox.put(new)
        if flight.entry.strikes:
            flight.cleared()
            self._next_trial(flight)
        if new.finish_reason is not None:
            self._finish(flight)

    # Within

    def _submit(self, flight: Flight) -> None:
        """Give it to Ray Serve, whose router asks the directory for a replica."""
        info = self.fleet.info
        assert info is not None
        entry = flight.entry
        fingerprint = entry.fingerprint if entry.begun else info.fingerprint
        if not self.fleet.usable_of(fingerprint) or not self.trials.may_run(flight):
            flight.waiting_since = flight.waiting_since or time.monotonic()
            return
        flight.waiting_since = None
        self._runs += 1
        wire_id = f"{self._api}/{entry.request.request_id}/{self._runs}"
        try:
            request = entry.submission(wire_id, self.fleet.infos[fingerprint])
        except ReplayMismatch as error:
            self._end(flight, error)
            return
        self.counters.replayed += flight.runs > 0
        flight.runs += 1
        flight.wire_id = wire_id
        self._wires[wire_id] = flight
        self._directory.wanted[wire_id] = Wanted(request.prompt, fingerprint)
        call = self._run(flight, wire_id, _encoder.encode(request), self.fleet.handle)
        flight.call = asyncio.create_task(call)

    async def _run(self, flight: Flight, wire_id: str, payload: bytes, handle: Any) -> None:
        """The call lasts as long as the request: so Ray Serve counts it."""
        try:
            await handle.run.remote(self._api, wire_id, payload)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # Ray's many, all of which mean that it did not run to its end
            logger.debug("A call of a replica failed: %s", error)
            await asyncio.sleep(0.05)  # the stream's own news, if any, is better
            if self._wires.get(wire_id) is flight:
                self._unwire(flight)
                self._submit(flight)

    def _unwire(self, flight: Flight) -> None:
        """It runs nowhere, as far as we care."""
        wire_id, flight.wire_id, flight.replica = flight.wire_id, "", ""
        self._wires.pop(wire_id, None)
        self._directory.settled(wire_id)
        flight.entry.wire_id = None

    def _finish(self, flight: Flight) -> None:
        wire_id = flight.wire_id
        link = self.fleet.holding(flight.replica, wire_id) if flight.replica else None
        self._unwire(flight)
        if link is not None:
            self.fleet.landed(link, wire_id)

    def _end(self, flight: Flight, error: MaestraleError) -> None:
        self.forget(flight)
        flight.entry.mailbox.fail(error)

    def _next_trial(self, flight: Flight) -> None:
        following = self.trials.over(flight)
        if following is not None and not following.wire_id:
            self._submit(following)

    def _note_death(self, reason: str) -> None:
        now = time.monotonic()
        self._deaths.append((now, reason))
        while now - self._deaths[0][0] > self._window:
            self._deaths.popleft()
        if len(self._deaths) >= self._most and not self.fleet.usable():
            self.gave_up = (
                f"The engines of all replicas failed, {len(self._deaths)} times within "
                f"{self._window:.0f} seconds (last: {reason}). They are being restarted; try "
                "again later."
            )
            logger.error("%s", self.gave_up)
            self.end_all(Unavailable(self.gave_up, retry_after=5))

    def _no_twin(self, flight: Flight) -> str:
        return (
            "The engine that began this answer stopped, and no replica of the same fingerprint "
            f"({flight.entry.fingerprint}) came within {self._window:.0f} seconds, so nobody can "
            "go on with it. Send the request again."
        )
