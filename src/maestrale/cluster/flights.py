"""Requests in flight over several replicas, and those that may be what kills them.

A request that kills an engine by itself must not take one replica after another along. One that
was in an engine at two deaths in a row, without a new token in between, is a suspect. Suspects
run one at a time; one at whose trial the engine dies twice more is refused. `supervise/replay.py`
does the same for a single engine; its `Entry` compares tokens here as well.
"""

from __future__ import annotations

import asyncio

from maestrale.engines.base import GenerationRequest
from maestrale.supervise.replay import STRIKES, Entry

SUSPECT_AFTER = 2


class Flight:
    """One request. `wire_id` names its present run, and is never used again."""

    def __init__(self, request: GenerationRequest, fingerprint: str) -> None:
        self.entry = Entry(request)
        self.entry.fingerprint = fingerprint
        self.wire_id = ""
        self.replica = ""  # where it runs, once that is known
        self.runs = 0
        self.waiting_since: float | None = None  # for a replica that can go on with it
        self.call: asyncio.Task[None] | None = None
        self.suspect = False

    @property
    def refused(self) -> bool:
        return self.entry.strikes >= SUSPECT_AFTER + STRIKES

    def strike(self) -> None:
        """The engine died with it."""
        self.entry.strikes += 1
        self.suspect = self.suspect or self.entry.strikes >= SUSPECT_AFTER

    def cleared(self) -> None:
        """It gave a new token."""
        self.entry.strikes = 0
        self.suspect = False


class Trials:
    """Lets one suspect run at a time."""

    def __init__(self) -> None:
        self._waiting: list[Flight] = []
        self._on_trial: Flight | None = None

    def may_run(self, flight: Flight) -> bool:
        """Whether it may be submitted now; if not, it waits for its turn."""
        if not flight.suspect or flight is self._on_trial:
            return True
        if self._on_trial is None:
            self._on_trial = flight
            return True
        if flight not in self._waiting:
            self._waiting.append(flight)
        return False

    def over(self, flight: Flight) -> Flight | None:
        """It is cleared, refused or gone; returns the next to be tried, if it was on trial."""
        if flight in self._waiting:
            self._waiting.remove(flight)
        if flight is not self._on_trial:
            return None
        self._on_trial = self._waiting.pop(0) if self._waiting else None
        return self._on_trial

    @property
    def running(self) -> bool:
        return self._on_trial is not None
