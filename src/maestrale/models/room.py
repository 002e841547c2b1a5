"""Is the disk full? Whoever writes a model finds out late, and often in other words.

A converter of another's says "iostream error", a compiler nothing at all; so the file system is
asked when something could not be written.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
LEAST = 4 << 20  # bytes; less is no room for any part of a model


def is_full(folder: Path, error: BaseException | None = None) -> bool:
    """Whether `error`, or what it came from, or the file system of `folder` says so."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    # Some file systems count no files.
    out_of_files = status.f_files > 0 and status.f_favail == 0
    return out_of_files or status.f_bavail * status.f_frsize < LEAST


def full_message(folder: Path) -> str:
    """What happened, and what to do."""
    return (
        f"The disk is full: there is no room left in {folder}. Make room there, or give another "
        "folder with --cache-dir."
    )
