"""The replicas that this process knows of: they come, go, are lost, and some take new requests.

Ray Serve says which there are (`replicas_are`, through the router); each is listened to
(`link.py`). What happens to the requests on a replica is for `traffic.py`, which is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from maestrale.cluster.replica_connection import ReplicaLink
from maestrale.cluster.routing_table import RoutingTable, Seat
from maestrale.engines.base import EngineInfo, EngineStats
from maestrale.supervise.messages import Delta, RequestFailed
from maestrale.supervise.process import sum_stats

REJOIN = 1.0  # seconds until a replica whose stream broke is asked again
PAUSE_OF_EACH = 0.002
"""Seconds between two items of one replica's stream, for each replica: the items of all together
stay few enough for this process, however many replicas there are."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.004, 0.06

logger = logging.getLogger(__name__)


class Passenger(Protocol):
    """Who has requests on replicas, and is told what becomes of those."""

    def replicas_changed(self) -> None: ...
    def replica_said(self, message: Delta | RequestFailed) -> None: ...
    def is_wanted(self, wire_id: str) -> bool: ...
    def replica_lost(self, wire_ids: set[str], reason: str, engine_died: bool) -> None: ...


class ReplicaPool:
    """Lines to all replicas. `info` is what new requests get; None until the first is up."""

    def __init__(self, model: str, api: str, directory: RoutingTable, passenger: Passenger) -> None:
        self.info: EngineInfo | None = None
        self.infos: dict[str, EngineInfo] = {}  # by fingerprint
        self.first = asyncio.Event()
        self.awaited = ""  # by whom that one must have been deployed; "": whomever
        self.losses = 0
        self.stopping = False
        self.handle: Any = None  # Ray Serve's, of the deployment
        self.past = EngineStats()  # of the replicas that are gone
        self._model = model
        self._api = api
        self._sessions = 0
        self._directory = directory
        self._passenger = passenger
        self._links: dict[str, ReplicaLink] = {}
        self._closing: set[ReplicaLink] = set()  # drained, or broken; not yet gone
        self._present: frozenset[str] = frozenset()
        self._was_up = False
        self._listeners: list[Callable[[bool], None]] = []

    # Who there is

    def all(self) -> list[ReplicaLink]:
        return [*self._links.values(), *self._closing]

    def usable(self) -> list[ReplicaLink]:
        """Those that take new requests."""
        return self.usable_of(self.info.fingerprint) if self.info is not None else []

    def usable_of(self, fingerprint: str) -> list[ReplicaLink]:
        return [
            link
            for link in self._links.values()
            if link.state == "up"
            and link.hello is not None
            and link.hello.info.fingerprint == fingerprint
        ]

    def foreign(self) -> str:
        """The other model that replicas serve, where that is all they do."""
        models = [link.hello.model for link in self._links.values() if link.hello is not None]
        return models[0] if models and self._model not in models else ""

    def named(self, name: str) -> ReplicaLink | None:
        """Also one that drains."""
        link = self._links.get(name)
        return link or next((each for each in self._closing if each.name == name), None)

    def holding(self, name: str, wire_id: str) -> ReplicaLink | None:
        """The replica of this name, if this run of a request is there."""
        link = self._links.get(name)
        if link is not None and wire_id in link.wires:
            return link
        return next((each for each in self._closing if wire_id in each.wires), None)

    def on_pause(self, listener: Callable[[bool], None]) -> None:
        self._listeners.append(listener)

    # They come and go (told by the router, on this loop)

    def replicas_are(self, names: frozenset[str]) -> None:
        """Ray Serve gives requests to these; those that drain are no more among them."""
        self._present = names
        for name, link in tuple(self._links.items()):
            if name not in names:
                link.drain()
                self._directory.unseat(name)
                del self._links[name]
                self._closing.add(link)
                self._leave_if_done(link)
        self._settle()
        self._passenger.replicas_changed()
        for name in names:
            if name not in self._links:
                self._open(name)

    def _open(self, name: str) -> None:
        if self.stopping or self.handle is None:
            return
        self._sessions += 1
        session = f"{self._api}/{self._sessions}"
        pause = PAUSE_OF_EACH * max(1, len(self._present))
        pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, pause))
        stream = self.handle.options(stream=True).listen.remote(session, name, pause)
        self._links[name] = ReplicaLink(name, session, stream, self._directory, self)

    def _rejoin(self, name: str) -> None:
        if name in self._present and name not in self._links:
            self._open(name)

    def boarded(self, link: ReplicaLink, wire_id: str) -> None:
        """This run of a request has arrived there."""
        link.wires.add(wire_id)
        self._directory.set_load(link.name, link.load)
        self._directory.settled(wire_id)

    def landed(self, link: ReplicaLink, wire_id: str) -> None:
        """This run of a request is over there."""
        link.wires.discard(wire_id)
        self._directory.set_load(link.name, link.load)
        self._leave_if_done(link)

    def _leave_if_done(self, link: ReplicaLink) -> None:
        if link.state == "draining" and not link.wires:
            self.past = sum_stats(self.past, link.stats)
            self._closing.discard(link)
            link.bye()

    def tick(self, elapsed: float) -> None:
        """`elapsed` seconds passed."""
        for link in self.all():
            link.tick(elapsed)

    async def leave(self) -> None:
        """Of all of them, for good."""
        links = self.all()
        for link in links:
            link.bye()
        await asyncio.gather(*(link.ended() for link in links))
        self._links.clear()
        self._closing.clear()

    # For the links

    def link_up(self, link: ReplicaLink) -> None:
        """Its replica has said what it is."""
        assert link.hello is not None
        info = link.hello.info
        if link.hello.model != self._model:
            link.state = "foreign"
            logger.warning(
                "The replica on %s serves %s now, not %s: it gets no requests from here.",
                *(link.hello.host, link.hello.model, self._model),
            )
            return
        self.infos[info.fingerprint] = info
        logger.info("A replica is ready on %s (process %d).", link.hello.host, link.hello.pid)
        if self.awaited in ("", link.hello.deployed_by):
            self.first.set()
        seat = Seat(info.fingerprint, info.max_num_seqs, link.load)
        self._directory.seat(link.name, seat)
        self._settle()
        if self.info is not None and self.info.fingerprint != info.fingerprint:
            logger.warning(
                "The replica on %s has another fingerprint (%s) than the others (%s): it gets no "
                "requests while those are as many, as its answers might differ.",
                *(link.hello.host, info.fingerprint, self.info.fingerprint),
            )
        self._passenger.replicas_changed()

    def link_lost(self, link: ReplicaLink, reason: str, engine_died: bool) -> None:
        """Its requests go elsewhere, now."""
        self._directory.unseat(link.name)
        if self._links.get(link.name) is link:
            del self._links[link.name]
        self._closing.discard(link)
        self.past = sum_stats(self.past, link.stats)
        lost, link.wires = link.wires, set()
        if link.hello is not None and not self.stopping:
            logger.error(
                "A replica on %s is lost: %s. %d requests in flight go to another one.",
                *(link.hello.host, reason, len(lost)),
            )
            self.losses += 1
        self._settle()
        self._passenger.replica_lost(lost, reason, engine_died)
        self._passenger.replicas_changed()
        if not self.stopping:
            asyncio.get_running_loop().call_later(REJOIN, self._rejoin, link.name)

    def link_held(self, link: ReplicaLink, wire_ids: tuple[str, ...]) -> None:
        """What its replica works on for us. What nobody waits for is aborted."""
        self._directory.set_load(link.name, link.load)
        for wire_id in wire_ids:
            if not self._passenger.is_wanted(wire_id):
                link.abort(wire_id)

    def link_said(self, message: Delta | RequestFailed) -> None:
        self._passenger.replica_said(message)

    # Within

    def _settle(self) -> None:
        """After each change: where new requests go, and whether there is such a replica.

        They go to the fingerprint that most replicas have; the present one, if others only equal
        it. So a rolling change moves them over once, when half of the replicas are new.
        """
        counts: dict[str, int] = {}
        for link in self._links.values():
            if link.state == "up" and link.hello is not None:
                fingerprint = link.hello.info.fingerprint
                counts[fingerprint] = counts.get(fingerprint, 0) + 1
        now = self.info.fingerprint if self.info is not None else ""
        if counts:
            best = max(counts, key=lambda name: (counts[name], name == now))
            if now and best != now:
                logger.warning("New requests go to engines of fingerprint %s.", best)
            self.info = self.infos[best]
        if bool(counts) != self._was_up:
            self._was_up = bool(counts)
            for listener in self._listeners:
                listener(not self._was_up)
