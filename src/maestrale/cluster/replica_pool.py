"""The replicas that this process knows of: they come, go, are lost, and some take new requests.

Ray Serve says which there are (`replicas_are`, through the router); each is listened to
(`replica_connection.py`). What happens to the requests on a replica is for the dispatcher.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from maestrale.cluster.replica_connection import ReplicaConnection
from maestrale.cluster.routing_table import RoutingTable, Slot
from maestrale.engines.base import EngineInfo, EngineStats
from maestrale.supervise.messages import Delta, RequestFailed
from maestrale.supervise.process import sum_stats

REJOIN = 1.0  # seconds until a replica whose stream broke is asked again
PAUSE_OF_EACH = 0.002
"""Seconds between two items of one replica's stream, for each replica: the items of all together
stay few enough for this process, however many replicas there are."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.004, 0.06

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Who has requests on replicas, and is told what becomes of those."""

    def replicas_changed(self) -> None: ...
    def replica_said(self, message: Delta | RequestFailed) -> None: ...
    def waits_for(self, wire_id: str) -> bool: ...
    def replica_lost(self, wire_ids: set[str], reason: str, blamed: bool) -> None: ...


class ReplicaPool:
    """Lines to all replicas. `info` is what new requests get; None until the first is up."""

    def __init__(
        self, model: str, api: str, table: RoutingTable, listener: Listener, *, label: str = ""
    ) -> None:
        """`label` names the model in the log, where there are several."""
        self.info: EngineInfo | None = None
        self.infos: dict[str, EngineInfo] = {}  # by fingerprint
        self.first = asyncio.Event()
        self.awaited = ""  # by whom that one must have been deployed; "": whomever
        self.losses = 0
        self.stopping = False
        self.handle: Any = None  # Ray Serve's, of the deployment
        self.past = EngineStats()  # of the replicas that are gone
        self._model = model
        self._of = f" of {label}" if label else ""
        self._api = api
        self._sessions = 0
        self._table = table
        self._listener = listener
        self._connections: dict[str, ReplicaConnection] = {}
        self._closing: set[ReplicaConnection] = set()  # drained, or broken; not yet gone
        self._present: frozenset[str] = frozenset()
        self._was_up = False
        self._listeners: list[Callable[[bool], None]] = []

    # Who there is

    def all(self) -> list[ReplicaConnection]:
        return [*self._connections.values(), *self._closing]

    def usable(self) -> list[ReplicaConnection]:
        """Those that take new requests."""
        return self.usable_of(self.info.fingerprint) if self.info is not None else []

    def usable_of(self, fingerprint: str) -> list[ReplicaConnection]:
        return [
            connection
            for connection in self._connections.values()
            if connection.state == "up"
            and connection.hello is not None
            and connection.hello.info.fingerprint == fingerprint
        ]

    def foreign(self) -> str:
        """The other model that replicas serve, where that is all they do."""
        models = [
            connection.hello.model
            for connection in self._connections.values()
            if connection.hello is not None
        ]
        return models[0] if models and self._model not in models else ""

    def named(self, name: str) -> ReplicaConnection | None:
        """Also one that drains."""
        connection = self._connections.get(name)
        return connection or next((each for each in self._closing if each.name == name), None)

    def holding(self, name: str, wire_id: str) -> ReplicaConnection | None:
        """The replica of this name, if this run of a request is there."""
        connection = self._connections.get(name)
        if connection is not None and wire_id in connection.wires:
            return connection
        return next((each for each in self._closing if wire_id in each.wires), None)

    def on_pause(self, listener: Callable[[bool], None]) -> None:
        self._listeners.append(listener)

    # They come and go (told by the router, on this loop)

    def replicas_are(self, names: frozenset[str]) -> None:
        """Ray Serve gives requests to these; those that drain are no more among them."""
        self._present = names
        for name, connection in tuple(self._connections.items()):
            if name not in names:
                connection.drain()
                self._table.remove_slot(name)
                del self._connections[name]
                self._closing.add(connection)
                self._leave_if_done(connection)
        self._settle()
        self._listener.replicas_changed()
        for name in names:
            if name not in self._connections:
                self._open(name)

    def _open(self, name: str) -> None:
        if self.stopping or self.handle is None:
            return
        self._sessions += 1
        session = f"{self._api}/{self._sessions}"
        pause = PAUSE_OF_EACH * max(1, len(self._present))
        pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, pause))
        stream = self.handle.options(stream=True).listen.remote(session, name, pause)
        self._connections[name] = ReplicaConnection(name, session, stream, self._table, self)

    def _rejoin(self, name: str) -> None:
        if name in self._present and name not in self._connections:
            self._open(name)

    def assigned(self, connection: ReplicaConnection, wire_id: str) -> None:
        """This run of a request has arrived there."""
        connection.wires.add(wire_id)
        self._table.set_load(connection.name, connection.load)
        self._table.settled(wire_id)

    def released(self, connection: ReplicaConnection, wire_id: str) -> None:
        """This run of a request is over there."""
        connection.wires.discard(wire_id)
        self._table.set_load(connection.name, connection.load)
        self._leave_if_done(connection)

    def _leave_if_done(self, connection: ReplicaConnection) -> None:
        if connection.state == "draining" and not connection.wires:
            self.past = sum_stats(self.past, connection.stats)
            self._closing.discard(connection)
            connection.bye()

    def tick(self, elapsed: float) -> None:
        """`elapsed` seconds passed."""
        for connection in self.all():
            connection.tick(elapsed)

    async def leave(self) -> None:
        """All of them; what is told of them remains."""
        connections = self.all()
        for connection in connections:
            self.past = sum_stats(self.past, connection.stats)
            self._table.remove_slot(connection.name)
            connection.bye()
        await asyncio.gather(*(connection.ended() for connection in connections))
        self._connections.clear()
        self._closing.clear()
        self._present, self._was_up = frozenset(), False

    # For the connections

    def connection_up(self, connection: ReplicaConnection) -> None:
        """Its replica has said what it is."""
        assert connection.hello is not None
        info = connection.hello.info
        if connection.hello.model != self._model:
            connection.state = "foreign"
            logger.warning(
                "The replica on %s serves %s now, not %s: it gets no requests from here.",
                *(connection.hello.host, connection.hello.model, self._model),
            )
            return
        self.infos[info.fingerprint] = info
        logger.info(
            "A replica%s is ready on %s (process %d).",
            *(self._of, connection.hello.host, connection.hello.pid),
        )
        if self.awaited in ("", connection.hello.deployed_by):
            self.first.set()
        slot = Slot(info.fingerprint, info.max_num_seqs, connection.load)
        self._table.add_slot(connection.name, slot)
        self._settle()
        if self.info is not None and self.info.fingerprint != info.fingerprint:
            logger.warning(
                "The replica%s on %s has another fingerprint (%s) than the others (%s): it gets no "
                "requests while those are as many, as its answers might differ.",
                *(self._of, connection.hello.host, info.fingerprint, self.info.fingerprint),
            )
        self._listener.replicas_changed()

    def connection_lost(self, connection: ReplicaConnection, reason: str, blamed: bool) -> None:
        """Its requests go elsewhere, now."""
        self._table.remove_slot(connection.name)
        if self._connections.get(connection.name) is connection:
            del self._connections[connection.name]
        self._closing.discard(connection)
        self.past = sum_stats(self.past, connection.stats)
        lost, connection.wires = connection.wires, set()
        if connection.hello is not None and not self.stopping:
            logger.error(
                "A replica%s on %s is lost: %s. %d requests in flight go to another one.",
                *(self._of, connection.hello.host, reason, len(lost)),
            )
            self.losses += 1
        self._settle()
        self._listener.replica_lost(lost, reason, blamed)
        self._listener.replicas_changed()
        if not self.stopping:
            asyncio.get_running_loop().call_later(REJOIN, self._rejoin, connection.name)

    def connection_held(self, connection: ReplicaConnection, wire_ids: tuple[str, ...]) -> None:
        """What its replica works on for us. What nobody waits for is aborted."""
        self._table.set_load(connection.name, connection.load)
        for wire_id in wire_ids:
            if not self._listener.waits_for(wire_id):
                connection.abort(wire_id)

    def connection_said(self, message: Delta | RequestFailed) -> None:
        self._listener.replica_said(message)

    # Within

    def _settle(self) -> None:
        """After each change: where new requests go, and whether there is such a replica.

        They go to the fingerprint that most replicas have; the present one, if others only equal
        it. So a rolling change moves them over once, when half of the replicas are new.
        """
        counts: dict[str, int] = {}
        for connection in self._connections.values():
            if connection.state == "up" and connection.hello is not None:
                fingerprint = connection.hello.info.fingerprint
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
