"""Tells how a download goes: bytes, speed, time left."""

from __future__ import annotations

import time
from collections import deque

from maestrale.models.store import Progress

WINDOW = 10.0  # seconds over which the speed is taken
_EVERY = 0.25  # seconds between two reports

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def shown_bytes(count: float) -> str:
    """`14.5 GB`, in powers of ten as the hub and disks count."""
    for factor, unit in _UNITS:
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def shown_time(seconds: float) -> str:
    """`1 h 20 min`, `3 min 20 s`, `8 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


class Meter:
    """Counts bytes of one download of `total` bytes, `already` of which are here."""

    def __init__(self, what: str, total: int, already: int, progress: Progress) -> None:
        self._what, self._total, self._progress = what, max(total, 1), progress
        self.done = already
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), already)])
        self._told = 0.0
        self._tell(time.monotonic())

    def add(self, count: int) -> None:
        """`count` more bytes are here; negative where some must come again."""
        self.done += count
        now = time.monotonic()
        if count < 0:
            self._seen = deque([(now, self.done)])
        if now - self._told >= _EVERY or self.done == self._total:
            self._tell(now)

    def _tell(self, now: float) -> None:
        self._told = now
        self._seen.append((now, self.done))
        while len(self._seen) > 2 and self._seen[1][0] < now - WINDOW:
            self._seen.popleft()
        began, had = self._seen[0]
        elapsed = now - began
        speed = (self.done - had) / elapsed if elapsed > 0 else 0.0
        text = f"{self._what}: {shown_bytes(self.done)} of {shown_bytes(self._total)}"
        if speed > 0:
            left = shown_time((self._total - self.done) / speed)
            text += f", {shown_bytes(speed)}/s, {left} left"
        self._progress(text, min(self.done / self._total, 1.0))
