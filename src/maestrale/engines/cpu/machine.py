"""What the CPU is, and what this process may use of it."""

from __future__ import annotations

import ctypes
import platform
import signal
from pathlib import Path

from maestrale.models.machine_limits import available_cores, available_memory

__all__ = ["available_cores", "available_memory", "cpu_identity", "die_with_parent"]


def cpu_identity() -> str:
    """The CPU's name and features, as far as they can change a floating-point result."""
    fields = {"model name": platform.machine(), "flags": ""}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        name = name.strip().replace("Features", "flags")
        if name in fields:
            fields[name] = value.strip()
        if not line.strip():
            break  # the first core says it all
    return "; ".join(fields.values())


def die_with_parent() -> None:
    """End this process when the thread that started it ends (PR_SET_PDEATHSIG, SIGKILL)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
