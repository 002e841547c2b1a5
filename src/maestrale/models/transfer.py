"""One file from the hub: taken up where a cut left it, and checked against its checksum."""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

import httpx2

from maestrale.errors import ModelError
from maestrale.models.hub import Hub, Listing, RemoteFile, status_of
from maestrale.models.snapshot import Digest
from maestrale.models.store import Progress

ATTEMPTS = 6  # in a row without a new byte, before it is given up
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_READ = 1 << 22

logger = logging.getLogger(__name__)


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


def fetch_file(hub: Hub, listing: Listing, file: RemoteFile, partial: Path, meter: Meter) -> None:
    """Fill `partial` with the file; what it holds already is not fetched again.

    Raises: ModelError when the bytes don't match the checksum, twice; after ATTEMPTS cuts
    without a byte between them, what the last one raised.
    """
    for _ in range(2):
        if _fill(hub, listing, file, partial, meter):
            return
        logger.warning("%s came damaged; fetching it again.", file.name)
        meter.add(-partial.stat().st_size)
        partial.unlink()
    raise ModelError(
        f"{file.name} of {listing.repo} doesn't have the checksum that the hub promises "
        f"({file.checksum}), twice in a row. A proxy or a mirror on the way changes it; try "
        "another network, or another HF_ENDPOINT."
    )


def _fill(hub: Hub, listing: Listing, file: RemoteFile, partial: Path, meter: Meter) -> bool:
    """Whether the whole file now has its checksum."""
    with partial.open("a+b") as out:
        digest = _Digest(file)
        digest.take_up(out)
        failures = 0
        while digest.length < file.size:
            before = digest.length
            try:
                _receive(hub, listing, file, out, digest, meter)
                reason: Exception | None = None
            except Exception as error:
                if not _is_transient(error):
                    raise
                reason = error
            if digest.length >= file.size:
                break
            failures = 0 if digest.length > before else failures + 1
            if failures >= ATTEMPTS:
                raise reason or httpx2.ReadError("the connection ends without a byte")
            if failures:
                logger.info("%s: %s; trying again.", file.name, reason or "the connection was cut")
                time.sleep(_pause(reason, failures))
    return digest.matches()


def _receive(
    hub: Hub, listing: Listing, file: RemoteFile, out: BinaryIO, digest: _Digest, meter: Meter
) -> None:
    """Append what comes until the connection ends."""
    with hub.open(listing, file.name, digest.length) as response:
        if digest.length and response.status_code != 206:  # it gives all or nothing
            meter.add(-digest.length)
            out.truncate(0)
            digest.restart()
        for chunk in response.iter_raw():
            kept = chunk[: file.size - digest.length]
            out.write(kept)
            digest.update(kept)
            meter.add(len(kept))
            if len(kept) < len(chunk):
                digest.spoil()  # longer than it may be
                return


def _is_transient(error: Exception) -> bool:
    return isinstance(error, httpx2.TransportError) or status_of(error) in _TRANSIENT


def _pause(reason: Exception | None, failures: int) -> float:
    asked = ""
    if reason is not None and status_of(reason) in _TRANSIENT:
        asked = reason.response.headers.get("Retry-After", "")  # type: ignore[attr-defined]
    if asked.isdecimal():
        return min(float(asked), 300.0)
    return _PAUSES[min(failures, len(_PAUSES)) - 1]


class _Digest:
    """The checksum of what has come so far of a file."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self.restart()

    @property
    def length(self) -> int:
        return self._digest.length

    def restart(self) -> None:
        self._sound = True
        self._digest = Digest(self._file.checksum, self._file.size)

    def take_up(self, out: BinaryIO) -> None:
        """Digest what a former attempt left in the file; more than there should be is dropped."""
        out.seek(0)
        if out.seek(0, 2) > self._file.size:
            out.truncate(0)
        out.seek(0)
        while chunk := out.read(_READ):
            self.update(chunk)

    def update(self, chunk: bytes) -> None:
        self._digest.update(chunk)

    def spoil(self) -> None:
        self._sound = False

    def matches(self) -> bool:
        """Where the hub gives no checksum of a known kind, the length must do."""
        return self._sound and self.length == self._file.size and self._digest.matches()
