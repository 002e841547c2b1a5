"""Which C++ compiler makes the kernel: the one that CXX names, else the machine's, else `ziglang`,
a compiler that comes as a wheel and needs neither root nor a package of the system.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from maestrale.engines.cpu.kernel.trust import not_only_ours
from maestrale.errors import EngineError, ModelError
from maestrale.models.wheels import Wheel, installed

COMPILERS = ("c++", "g++", "clang++")
ZIG = Wheel(
    "ziglang",
    "0.17.1",
    (
        "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",  # x86_64
        "b7c5f02fccd40f89b999ee16a1f5ddced56e6182370f8affe494bcf8a28cf07e",  # aarch64
    ),
)
# Its command, where it is installed for this interpreter.
ZIG_MODULE = (sys.executable, "-m", "ziglang", "c++")
MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}

# What stands behind -march, for GCC and Clang: Debian 12's know them all.
_AVX512 = ["-march=x86-64", "-mavx2", "-mfma", "-mf16c"]
_AVX512 += [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni")]
_FLAGS = {
    "x86_64": {
        "": ["-march=x86-64"],
        "avx2": ["-march=x86-64", "-mavx2", "-mfma", "-mf16c"],
        "avx512": _AVX512,
        "amx": [*_AVX512, "-mamx-tile", "-mamx-int8"],
    },
    "aarch64": {
        "": ["-march=armv8-a"],
        "neon": ["-march=armv8.2-a+fp16+dotprod"],
        "i8mm": ["-march=armv8.2-a+fp16+dotprod+i8mm"],
    },
}
# Zig takes a CPU and its features in its own words.
_ZIG_AVX512 = "-mcpu=x86_64+avx2+fma+f16c+avx512f+avx512bw+avx512dq+avx512vl+avx512vnni"
_ZIG_FLAGS = {
    "x86_64": {
        "": ["-mcpu=x86_64"],
        "avx2": ["-mcpu=x86_64+avx2+fma+f16c"],
        "avx512": [_ZIG_AVX512],
        "amx": [f"{_ZIG_AVX512}+amx_tile+amx_int8"],
    },
    "aarch64": {
        "": ["-mcpu=generic"],
        "neon": ["-mcpu=generic+v8_2a+fullfp16+dotprod"],
        "i8mm": ["-mcpu=generic+v8_2a+fullfp16+dotprod+i8mm"],
    },
}
# The oldest glibc that Zig links for: any distribution of the last ten years has it.
ZIG_GLIBC = "2.17"


@dataclass(frozen=True)
class CompileTarget:
    """What a library is made for."""

    machine: str  # the architecture, as compilers call it
    libc: Literal["glibc", "musl"]

    @classmethod
    def here(cls) -> CompileTarget:
        """This machine. Raises: EngineError where its architecture is none of ours."""
        machine = MACHINES.get(platform.machine().lower())
        if machine is None:
            raise EngineError(
                f"The CPU engine runs on x86-64 and 64-bit ARM, and this machine is "
                f"{platform.machine() or 'unknown'}."
            )
        return cls(machine, "glibc" if platform.libc_ver()[0] == "glibc" else "musl")

    def levels(self) -> list[str]:
        """Names of the levels that need instructions beyond the architecture's first, ascending."""
        return [name for name in _FLAGS[self.machine] if name]


@dataclass(frozen=True)
class Compiler:
    """A command that compiles C++, and how it spells instruction sets."""

    command: tuple[str, ...]
    zig: bool = False
    cache: Path | None = None  # where Zig keeps what it compiles of its own
    target: CompileTarget = field(default_factory=CompileTarget.here)

    def environment(self) -> dict[str, str]:
        """What the command gets."""
        kept = {}
        if self.cache is not None:
            kept = {f"ZIG_{kind}_CACHE_DIR": str(self.cache) for kind in ("GLOBAL", "LOCAL")}
        return {**os.environ, **kept}

    def flags(self, level: str) -> list[str]:
        """For a file of that level; "": for what runs on every CPU of the architecture."""
        if not self.zig:
            return _FLAGS[self.target.machine][level]
        return [*self._target(), *_ZIG_FLAGS[self.target.machine][level]]

    def link_flags(self) -> list[str]:
        """Of these the library carries the C++ runtime, so that it needs the C library alone."""
        if self.zig:
            return self._target()
        return ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"]

    def _target(self) -> list[str]:
        libc = f"gnu.{ZIG_GLIBC}" if self.target.libc == "glibc" else "musl"
        return ["-target", f"{self.target.machine}-linux-{libc}"]


def present() -> Compiler | None:
    """The compiler that is here already. Raises: EngineError where CXX names none."""
    asked = os.environ.get("CXX", "").split()
    if asked:
        if shutil.which(asked[0]) is None:
            raise EngineError(
                f"CXX names {asked[0]!r}, and there is no such program; correct or unset it."
            )
        return Compiler(tuple(asked), zig="zig" in Path(asked[0]).name)
    for name in COMPILERS:
        if found := shutil.which(name):
            return Compiler((found,))
    if find_spec("ziglang") is not None:
        return Compiler(ZIG_MODULE, zig=True)
    return None


def compiler(folder: Path, progress: Callable[[str, float | None], None]) -> Compiler:
    """The compiler that is here, or Zig, fetched into `folder`. Raises: EngineError."""
    found = present()
    if found is not None:
        return found
    try:
        package = installed(
            ZIG, folder, progress, "Fetching a C++ compiler (the package ziglang, 100 MB, once)"
        )
    except ModelError as error:
        raise EngineError(
            "The CPU engine's kernel must be compiled once, and there is no C++ compiler. Install "
            "one (on Debian and Ubuntu: apt install g++), or let maestrale fetch one: "
            f"{str(error)[0].lower()}{str(error)[1:]}"
        ) from error
    except OSError as error:
        raise EngineError(
            f"The C++ compiler that the CPU engine's kernel needs can't be kept in {folder}: "
            f"{error.strerror}. Install one (on Debian and Ubuntu: apt install g++)."
        ) from error
    program = package / "ziglang" / "zig"
    for path in (package.parent, package, program.parent, program):
        if reason := not_only_ours(path):
            raise EngineError(
                f"The C++ compiler in {package} can't be trusted: {reason}. Remove that folder, "
                "and the next start fetches it anew; or install a compiler."
            )
    return Compiler((str(program), "c++"), zig=True, cache=package.parent / "cache")
