"""What a process asks of the kernel and the machine for itself, and what it leaves on the disk."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Let the kernel end this process when its parent ends, even where it no longer listens.

    `parent`: the one that it must have, else it ends here: that one was gone before this. Linux
    alone can do it; elsewhere a process notices by the end of a socket.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def is_alive(pid: int) -> bool:
    """Whether there is a process of that number, whosever it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def private_folder(prefix: str, base: str | Path | None = None) -> Path:
    """A new folder, below the temporary one or `base`, that only this user may enter.

    It bears this process's number; those of processes that ended without removing theirs go.
    """
    place = Path(base or tempfile.gettempdir())
    for old in place.glob(f"{prefix}-*-*"):
        number = old.name.removeprefix(f"{prefix}-").partition("-")[0]
        if number.isdigit() and not is_alive(int(number)):
            shutil.rmtree(old, ignore_errors=True)  # another user's stays
    return Path(tempfile.mkdtemp(prefix=f"{prefix}-{os.getpid()}-", dir=place))
