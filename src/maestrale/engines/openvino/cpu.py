"""What this process may use of the machine, and what the CPU is."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import signal
from pathlib import Path


def available_cores() -> int:
    """Cores that this process may run on: its affinity, and its cgroup's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores  # no cgroup v2 here
    if quota == "max":
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))


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


def available_memory() -> int:
    """Bytes that can be used without swapping: the system's, or the cgroup's where it has less."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            break
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free  # no cgroup v2 here
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def die_with_parent() -> None:
    """End this process when the thread that started it ends (PR_SET_PDEATHSIG, SIGKILL)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
