"""Whether what is in the hub's cache is what was fetched: a file there is named by its checksum.

Small files are read again at every start. A large one is when it is first met, and when its size,
its time or its place on the disk is another than then: all of 14 GB takes half a minute.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from maestrale.models.prepared import MOST_READ
from maestrale.models.snapshot import RepoCache
from maestrale.models.store import Progress

NOTES = ".maestrale.checked.json"
_READ = 1 << 22

Seen = tuple[int, int, int]  # size, nanoseconds of the last change, inode


class Digest:
    """A file's checksum as its bytes come: SHA-256, or git's SHA-1 of a blob of `size` bytes."""

    def __init__(self, checksum: str, size: int) -> None:
        self._checksum = checksum.lower()
        self.length = 0
        self._hash: Any = None
        if len(checksum) == 64:
            self._hash = hashlib.sha256()
        elif len(checksum) == 40:
            self._hash = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        self.length += len(chunk)
        if self._hash is not None:
            self._hash.update(chunk)

    def matches(self) -> bool:
        """Where the hub gives no checksum of a known kind, nothing speaks against it."""
        return self._hash is None or bool(self._hash.hexdigest() == self._checksum)


class CheckedFiles:
    """The files of one model in the cache, and which of them were found sound."""

    def __init__(self, place: RepoCache) -> None:
        self._notes = place.folder / NOTES
        self._seen: dict[str, Seen] = {}
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            self._seen = msgspec.json.decode(self._notes.read_bytes(), type=dict[str, Seen])

    def damaged(self, blob: Path, progress: Progress) -> bool:
        """Whether its bytes are other ones than its name promises. Raises: OSError."""
        status = blob.stat()
        seen = _seen(status)
        if status.st_size > MOST_READ and self._seen.get(blob.name) == seen:
            return False
        digest = Digest(blob.name, status.st_size)
        with blob.open("rb") as file:
            while chunk := file.read(_READ):
                digest.update(chunk)
                if status.st_size > MOST_READ:
                    progress("Checking the model's files", digest.length / status.st_size)
        if not digest.matches():
            return True
        self.note(blob, status)
        return False

    def note(self, blob: Path, status: os.stat_result | None = None) -> None:
        """It was found sound as it is now. A cache that can't be written goes without."""
        self._seen[blob.name] = _seen(status or blob.stat())
        draft = self._notes.with_name(f"{NOTES}.{os.getpid()}")
        with contextlib.suppress(OSError):
            try:
                draft.write_bytes(msgspec.json.encode(self._seen))
                draft.replace(self._notes)
            finally:
                draft.unlink(missing_ok=True)


def damaged_files(
    place: RepoCache, snapshot: Path, names: Iterable[str], progress: Progress
) -> list[str]:
    """Those of a snapshot's files whose bytes aren't what was fetched. Raises: OSError."""
    checked = CheckedFiles(place)
    blobs = place.folder / "blobs"
    found = []
    for name in names:
        blob = (snapshot / name).resolve()
        # A file that somebody put there has no checksum to be held to.
        if blob.parent == blobs.resolve() and checked.damaged(blob, progress):
            found.append(name)
    return found


def _seen(status: os.stat_result) -> Seen:
    return status.st_size, status.st_mtime_ns, status.st_ino
