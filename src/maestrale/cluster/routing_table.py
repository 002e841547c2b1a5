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


@dataclass
class Slot:
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
class PendingRequest:
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
    slots: dict[str, Slot] = field(default_factory=dict)
    pending: dict[str, PendingRequest] = field(default_factory=dict)
    prefixes: PrefixTable = field(default_factory=PrefixTable)
    lock: threading.Lock = field(default_factory=threading.Lock)
    turn: int = 0
    _ways: dict[str, str] = field(default_factory=dict)  # wire id → replica that it is coming to

    def add_slot(self, name: str, slot: Slot) -> None:
        with self.lock:
            self.slots[name] = slot

    def remove_slot(self, name: str) -> None:
        with self.lock:
            if self.slots.pop(name, None) is not None:
                self.prefixes.forget(name)

    def set_load(self, name: str, load: int) -> None:
        """So many requests are there; those on their way to it are counted beside them."""
        slot = self.slots.get(name)
        if slot is not None:
            slot.known = load

    def settled(self, wire_id: str) -> None:
        """It is on its way no more: it arrived, and `set_load` has counted it, or it ended."""
        with self.lock:
            self.pending.pop(wire_id, None)
            slot = self.slots.get(self._ways.pop(wire_id, ""))
            if slot is not None:
                slot.coming.discard(wire_id)

    def choose(self, wire_id: str, present: frozenset[str]) -> str | None:
        """The replica for a request, of those `present`; None: there is none for it now.

        It counts as there at once: requests that come together must find each other's beginnings.
        """
        with self.lock:
            request = self.pending.get(wire_id)
            if request is None:
                return None
            slots = {
                name: slot
                for name, slot in self.slots.items()
                if name in present and request.fingerprint in ("", slot.fingerprint)
            }
            if not slots:
                return None
            self.turn += 1
            if self.routing == "round_robin":
                return sorted(slots)[self.turn % len(slots)]
            loads = {name: slot.load for name, slot in slots.items()}
            capacity = min(slot.capacity for slot in slots.values())
            seen = self.prefixes.matches(request.prompt, slots)
            chosen = pick(loads, seen, capacity, self.turn)
            self.prefixes.add(request.prompt, chosen)
            before = self.slots.get(self._ways.get(wire_id, ""))
            if before is not None:  # Ray Serve asks again for one that could not be sent
                before.coming.discard(wire_id)
            self._ways[wire_id] = chosen
            slots[chosen].coming.add(wire_id)
            return chosen

    def routed(self, wire_id: str, replica: str) -> None:
        """The replica has it."""
        with self.lock:
            self.pending.pop(wire_id, None)
        self.on_routed(wire_id, replica)


_tables: dict[str, RoutingTable] = {}


def routing_table(app: str) -> RoutingTable:
    """The one of this application; made at the first call."""
    return _tables.setdefault(app, RoutingTable())


def forget_routing_table(app: str) -> None:
    _tables.pop(app, None)
