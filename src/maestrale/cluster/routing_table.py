"""What the router must know to choose, and what it tells: shared with the engine of this process.

Ray Serve makes the router, on a thread of its own; the engine lives on the API's event loop. Both
find one `RoutingTable` by the application's name. The engine writes what it hears from replicas;
the router reads it, and calls back when the replicas change and when a request is on its way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from maestrale.cluster.prefix import PrefixTable, pick

ROUTING = ("prefix", "round_robin")


@dataclass
class Seat:
    """A replica that takes requests now. `known`: the requests it has, as far as known here;
    `coming`: those on their way to it, by wire id."""

    fingerprint: str
    capacity: int
    known: int = 0
    coming: set[str] = field(default_factory=set)

    @property
    def load(self) -> int:
        return self.known + len(self.coming)


@dataclass(frozen=True)
class Wanted:
    """A request on its way. `fingerprint` "" is any."""

    prompt: tuple[int, ...]
    fingerprint: str


@dataclass
class RoutingTable:
    """One application's replicas and requests on their way, in this process. Thread-safe."""

    routing: str = "prefix"
    on_replicas: Callable[[frozenset[str]], None] = lambda names: None
    on_routed: Callable[[str, str], None] = lambda wire_id, replica: None
    send: Callable[[str, str, bytes], None] = lambda replica, session, payload: None
    """Set by the router: `control` of this replica, also of one that drains."""
    seats: dict[str, Seat] = field(default_factory=dict)
    wanted: dict[str, Wanted] = field(default_factory=dict)
    table: PrefixTable = field(default_factory=PrefixTable)
    lock: threading.Lock = field(default_factory=threading.Lock)
    turn: int = 0
    _ways: dict[str, str] = field(default_factory=dict)  # wire id → replica that it is coming to

    def seat(self, name: str, seat: Seat) -> None:
        with self.lock:
            self.seats[name] = seat

    def unseat(self, name: str) -> None:
        with self.lock:
            if self.seats.pop(name, None) is not None:
                self.table.forget(name)

    def set_load(self, name: str, load: int) -> None:
        """So many requests are there; those on their way to it are counted beside them."""
        seat = self.seats.get(name)
        if seat is not None:
            seat.known = load

    def settled(self, wire_id: str) -> None:
        """It is on its way no more: it arrived, and `set_load` has counted it, or it ended."""
        with self.lock:
            self.wanted.pop(wire_id, None)
            seat = self.seats.get(self._ways.pop(wire_id, ""))
            if seat is not None:
                seat.coming.discard(wire_id)

    def choose(self, wire_id: str, present: frozenset[str]) -> str | None:
        """The replica for a request, of those `present`; None: there is none for it now.

        It counts as there at once: requests that come together must find each other's beginnings.
        """
        with self.lock:
            wanted = self.wanted.get(wire_id)
            if wanted is None:
                return None
            seats = {
                name: seat
                for name, seat in self.seats.items()
                if name in present and wanted.fingerprint in ("", seat.fingerprint)
            }
            if not seats:
                return None
            self.turn += 1
            if self.routing == "round_robin":
                return sorted(seats)[self.turn % len(seats)]
            loads = {name: seat.load for name, seat in seats.items()}
            capacity = min(seat.capacity for seat in seats.values())
            seen = self.table.matches(wanted.prompt, seats)
            chosen = pick(loads, seen, capacity, self.turn)
            self.table.add(wanted.prompt, chosen)
            before = self.seats.get(self._ways.get(wire_id, ""))
            if before is not None:  # Ray Serve asks again for one that could not be sent
                before.coming.discard(wire_id)
            self._ways[wire_id] = chosen
            seats[chosen].coming.add(wire_id)
            return chosen

    def routed(self, wire_id: str, replica: str) -> None:
        """The replica has it."""
        with self.lock:
            self.wanted.pop(wire_id, None)
        self.on_routed(wire_id, replica)


_directories: dict[str, RoutingTable] = {}


def directory(app: str) -> RoutingTable:
    """The one of this application; made at the first call."""
    return _directories.setdefault(app, RoutingTable())


def forget_directory(app: str) -> None:
    _directories.pop(app, None)
