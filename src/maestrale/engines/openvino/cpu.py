"""The cores this process may use, and what the CPU is."""

from __future__ import annotations

import math
import os
import platform
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
