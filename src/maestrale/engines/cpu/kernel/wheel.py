"""The libraries that a wheel brings: one for each architecture, compiled by Zig wherever the wheel
is made. Called by hatch_build.py, where none of maestrale's dependencies is installed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from maestrale.engines.cpu.kernel.build import CompileProgress, build, name, usable
from maestrale.engines.cpu.kernel.compilers import (
    MACHINES,
    ZIG,
    ZIG_GLIBC,
    ZIG_MODULE,
    Compiler,
    CompileTarget,
)

TARGETS = [CompileTarget(machine, "glibc") for machine in sorted(set(MACHINES.values()))]


def tag() -> str:
    """Of the wheel that holds them: any Python 3, on Linux of these architectures."""
    glibc = ZIG_GLIBC.replace(".", "_")
    return "py3-none-" + ".".join(f"manylinux_{glibc}_{target.machine}" for target in TARGETS)


def libraries(cache_dir: Path, progress: CompileProgress) -> list[Path]:
    """The files, kept below `cache_dir` for the next wheel. Raises: EngineError; OSError."""
    folder = cache_dir / f"wheel-{ZIG.distribution}-{ZIG.version}"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryDirectory(prefix="maestrale-zig-") as scratch:
        for target in TARGETS:
            zig = Compiler(ZIG_MODULE, zig=True, cache=Path(scratch), target=target)
            found.append(usable(folder / name(target)) or build(folder, zig, progress))
    return found
