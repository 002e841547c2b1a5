"""This process's line to one replica: what it says, and whether it still says anything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Literal, Protocol

import msgspec

from maestrale.cluster.routing_table import RoutingTable
from maestrale.cluster.wire import Beat, Bye, Hello, Lost, from_replica, pack
from maestrale.engines.base import EngineStats, ReplicaStatus
from maestrale.supervise.messages import Abort, Delta, RequestFailed
from maestrale.supervise.process import sum_stats

PING = 3.0
SILENCE = 10.0
"""Seconds without a word after which a replica counts as cut off."""
LONGEST_TICK = 1.0
ConnectionState = Literal["joining", "up", "foreign", "draining", "lost"]

logger = logging.getLogger(__name__)


class Owner(Protocol):
    """Who is told."""

    def connection_up(self, connection: ReplicaConnection) -> None: ...
    def connection_said(self, message: Delta | RequestFailed) -> None: ...
    def connection_held(self, connection: ReplicaConnection, wire_ids: tuple[str, ...]) -> None: ...
    def connection_lost(self, connection: ReplicaConnection, reason: str, blamed: bool) -> None: ...


class ReplicaConnection:
    """Lives as long as one stream of the replica. `wires`: the requests that are there; `others`:
    how many other API processes had there half a second ago, at most.

    `stats` has the counters since the stream's beginning, and the gauges of half a second ago.
    """

    def __init__(
        self, name: str, session: str, stream: Any, table: RoutingTable, owner: Owner
    ) -> None:
        self.name = name
        self.session = session
        self.state: ConnectionState = "joining"
        self.hello: Hello | None = None
        self.stats = EngineStats()
        self.wires: set[str] = set()
        self.others = 0
        self._before = EngineStats()  # what is to be left out of the counters
        self._stream = stream
        self._table = table
        self._owner = owner
        self._silent = 0.0
        self._since_ping = 0.0
        self._aborts: list[str] = []
        self._task = asyncio.create_task(self._listen())

    def status(self) -> ReplicaStatus:
        """What the status page, the metrics and `doctor` show of the replica."""
        hello = self.hello
        return ReplicaStatus(
            name=self.name,
            state=self.state,
            node=hello.node if hello else "",
            host=hello.host if hello else "",
            pid=hello.pid if hello else 0,
            engine_pid=hello.engine_pid if hello else 0,
            fingerprint=hello.info.fingerprint if hello else "",
            in_flight=len(self.wires),
            stats=self.stats,
        )

    @property
    def load(self) -> int:
        """What the replica has to do, as far as known here."""
        return len(self.wires) + self.others

    def abort(self, wire_id: str) -> None:
        """With all else that this turn of the event loop aborts."""
        if not self._aborts:
            asyncio.get_running_loop().call_soon(self._flush)
        self._aborts.append(wire_id)

    def tick(self, elapsed: float) -> None:
        """`elapsed` seconds passed. After a pause of our own nobody is blamed for the silence."""
        self._silent += min(elapsed, LONGEST_TICK)
        self._since_ping += elapsed
        if self.state in ("up", "foreign", "draining") and self._silent > SILENCE:
            self._lose(f"it gave no sign of life for {SILENCE:.0f} seconds", False)
        elif self._since_ping >= PING:
            self._since_ping = 0.0
            self._table.send(self.name, self.session, pack([]))

    def drain(self) -> None:
        """No new requests for it; the stream ends with the last one."""
        if self.state in ("up", "foreign"):
            self.state = "draining"

    def bye(self) -> None:
        """Leave it, for good."""
        self.state = "lost"
        self._table.send(self.name, self.session, pack([Bye()]))
        self._task.cancel()

    async def ended(self) -> None:
        await asyncio.gather(self._task, return_exceptions=True)

    def _flush(self) -> None:
        aborts, self._aborts = self._aborts, []
        if self.state != "lost":
            messages = [Abort(wire_id) for wire_id in aborts]
            self._table.send(self.name, self.session, pack(messages))

    async def _listen(self) -> None:
        reason = "its stream ended"
        try:
            async for data in self._stream:
                self._silent = 0.0
                for message in from_replica(data):
                    self._take(message)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                self._stream.cancel()
            raise
        except msgspec.DecodeError as error:
            reason = f"it sent what is no message ({error})"
        except Exception as error:  # Ray's many, each meaning that the replica can't be heard
            reason = f"its stream broke ({type(error).__name__})"
            logger.debug("%s", error)
        self._lose(reason, False)

    def _take(self, message: Hello | Delta | RequestFailed | Beat | Lost) -> None:
        if self.state == "lost":
            return
        match message:
            case Delta() | RequestFailed():
                self._owner.connection_said(message)
            case Beat(stats, held, others):
                self.stats = sum_stats(self._before, stats)
                self.others = others
                self._owner.connection_held(self, held)
            case Hello():
                self.hello = message
                self._before = sum_stats(EngineStats(), message.base, -1)
                self.state = "up"
                self._owner.connection_up(self)
            case Lost(reason, blamed):
                self._lose(reason, blamed)

    def _lose(self, reason: str, blamed: bool) -> None:
        if self.state != "lost":
            self.state = "lost"
            self._owner.connection_lost(self, reason, blamed)
            if asyncio.current_task() is not self._task:
                self._task.cancel()
