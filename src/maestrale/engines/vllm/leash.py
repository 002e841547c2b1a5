"""vLLM's engine core runs in a process of its own. It must not outlive the one that started it.

The class that vLLM makes in that process is the place for it: its first act is to ask the
kernel for SIGKILL at the parent's death. The core's own workers watch a pipe to the core; those
on other nodes are Ray's (leash_ray.py).
"""

from __future__ import annotations

import os
import sys
from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from maestrale import processes

INIT = 1


def die_with_parent() -> None:
    """The parent is a process of ours or vLLM's, never the system's first."""
    processes.die_with_parent()
    if sys.platform == "linux" and os.getppid() == INIT:
        os._exit(1)  # it died before this


class LeashedMultiproc(MultiprocExecutor):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        die_with_parent()
        super().__init__(*arguments, **named)


class LeashedUniProc(UniProcExecutor):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        die_with_parent()
        super().__init__(*arguments, **named)
