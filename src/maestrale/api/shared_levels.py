"""The levels of all rate limits in memory that several processes share.

A record is a name (16 bytes of a hash), a level, and the monotonic time it was true at. A lock of
the kernel's guards the table: it is given up when its holder dies, and costs about a microsecond.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import mmap
import os
import struct
from collections.abc import Iterator

SLOTS = 1 << 17
_RECORD = struct.Struct("<16sdd")
_EMPTY = bytes(16)
_PROBES = 64


def make_levels() -> int:
    """A file descriptor of the memory, to be inherited. Raises: OSError for want of memory.

    It is of no file system: a full disk, or a folder that is gone, would kill whoever touches a
    page of a mapped file. All of it is there from the beginning, so that a want of memory shows
    here and not later.
    """
    fd = os.memfd_create("maestrale-levels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, SLOTS * _RECORD.size)
        # Nobody can cut it under those who have it mapped.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


class SharedLevels:
    """Level and time of each bucket, by name. Use it within `lock`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._memory = mmap.mmap(fd, SLOTS * _RECORD.size)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else reads or writes meanwhile."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def read(self, name: str, full: float, now: float) -> tuple[float, float]:
        """(level, at); one that is not there yet is `full` now, as is one that makes no sense:
        its writer may have been killed in the middle.
        """
        digest, offset = self._find(name)
        found, level, at = _RECORD.unpack_from(self._memory, offset)
        if found != digest or not (math.isfinite(level) and level <= full and 0 < at <= now + 1):
            return full, now
        return level, at

    def write(self, name: str, level: float, at: float) -> None:
        digest, offset = self._find(name)
        _RECORD.pack_into(self._memory, offset, digest, level, at)

    def _find(self, name: str) -> tuple[bytes, int]:
        """Where it is, or where it may be put; in a table that is full, in another's place."""
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        home = int.from_bytes(digest[:8], "little")
        for probe in range(_PROBES):
            offset = (home + probe) % SLOTS * _RECORD.size
            found = self._memory[offset : offset + 16]
            if found in (digest, _EMPTY):
                return digest, offset
        return digest, home % SLOTS * _RECORD.size
