"""What the CPU is."""

from __future__ import annotations

import platform
from pathlib import Path


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
