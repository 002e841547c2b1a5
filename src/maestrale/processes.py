"""What a process asks of the kernel for itself."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

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
