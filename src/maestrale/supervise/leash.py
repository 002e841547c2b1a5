"""What every child process of ours does first, so that none ever outlives its parent."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import socket
import sys
from pathlib import Path

from maestrale.processes import die_with_parent

PR_SET_NAME = 15
OOM_SCORE = 500


def take_leash(fd: int, title: str, oom_score: int = OOM_SCORE) -> socket.socket:
    """Make this process a child that obeys its parent only; returns its socket.

    SIGINT and SIGTERM are ignored: a terminal or service manager sends them to every process,
    and it is the parent that decides when its children end. The parent's death is seen as
    end of file on the socket; on Linux the kernel also kills this process then, even one
    that no longer listens. When memory runs out, the kernel shall take this process (it is
    replaced) rather than the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    sock.setblocking(True)
    if sys.platform == "linux":
        die_with_parent()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NAME, title.encode()[:15], 0, 0, 0)
        with contextlib.suppress(OSError):  # not everywhere may this be set
            Path("/proc/self/oom_score_adj").write_text(str(oom_score))
    return sock
