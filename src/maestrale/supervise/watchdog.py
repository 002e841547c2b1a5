"""Is the engine alive, slow, or hung? Decided from what was heard; no process is touched here.

Alive means that heartbeats come. Working means that steps complete while there is work. How
long a step may take is learned: from a measurement at start, and from the steps since. So a
large model on a slow machine has all the time it needs, and a hung one is found soon.

Time is counted only while this process itself runs: after the machine slept, or this process
was stopped, the engine isn't blamed for the silence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

STEPS_REMEMBERED = 128


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait, in seconds, before the engine counts as dead."""

    silence: float = 10.0  # without a heartbeat
    step: float = 10.0  # for one step, at least
    step_factor: float = 5.0  # times the expected step
    start: float = 900.0  # for loading and compiling, while the process is not stopped
    tick: float = 0.5  # between two looks


class Watchdog:
    """Fed with what is heard and with the time that passes; says when it is enough."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._ready = False
        self._started = 0.0  # seconds of each, awake
        self._silent = 0.0
        self._stopped = 0.0
        self._stalled = 0.0
        self._steps = 0
        self._expected = 0.0
        self._recent: deque[float] = deque(maxlen=STEPS_REMEMBERED)

    def ready(self, expected_step: float, steps: int) -> None:
        self._ready = True
        self._expected = expected_step
        self._steps = steps
        self._silent = self._stalled = 0.0

    def heartbeat(self, steps: int) -> None:
        self._silent = 0.0
        if steps > self._steps:
            self._recent.append(self._stalled)  # too long rather than too short
            self._steps = steps
            self._stalled = 0.0

    @property
    def step_limit(self) -> float:
        """Seconds that a step may take now."""
        expected = max(self._expected, *self._recent, 0.0)
        return max(self._patience.step, self._patience.step_factor * expected)

    def tick(
        self, elapsed: float, *, busy: bool, stopped: bool, starved: float = 0.0
    ) -> str | None:
        """Account for `elapsed` seconds; returns why the engine must be replaced, or None.

        `busy`: it has work. `stopped`: the process is suspended (SIGSTOP). `starved`: for so long
        it waited for a CPU, which no other engine would have had.
        """
        awake = min(elapsed, 2 * self._patience.tick)
        self._silent = max(0.0, self._silent + awake - starved)
        self._started += awake
        self._stopped = self._stopped + awake if stopped else 0.0
        self._stalled = max(0.0, self._stalled + awake - starved) if busy else 0.0
        if self._stopped > self._patience.silence:
            return "it was suspended and did not go on"
        if not self._ready:
            if self._started > self._patience.start:
                return f"it was not ready after {self._patience.start:.0f} seconds"
            return None
        if self._stalled > self.step_limit:
            return f"it had work and completed no step for {self._stalled:.0f} seconds"
        # A long step may hold the interpreter and so silence the heartbeat.
        if self._silent > max(self._patience.silence, self.step_limit if busy else 0.0):
            return f"it gave no sign of life for {self._silent:.0f} seconds"
        return None
