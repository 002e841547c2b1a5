"""vLLM's engine core runs in a process of its own. It must not outlive the one that started it.

The class that vLLM makes in that process is the place for it: its first act is to ask the
kernel for SIGKILL at the parent's death. The core's own workers watch a pipe to the core; those
on other nodes are Ray's (leash_ray.py).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

PR_SET_PDEATHSIG = 1
INIT = 1


def die_with_parent() -> None:
    """Linux only; elsewhere the process ends when vLLM's own sockets fail."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == INIT:  # it died before this
            os._exit(1)


class LeashedMultiproc(MultiprocExecutor):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        die_with_parent()
        super().__init__(*arguments, **named)


class LeashedUniProc(UniProcExecutor):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        die_with_parent()
        super().__init__(*arguments, **named)
