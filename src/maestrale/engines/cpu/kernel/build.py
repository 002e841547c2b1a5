"""The kernel's library: prebuilt beside the package, or compiled once for this machine.

It is code, and so loaded only from where nobody but this user and root can write. Where it can't
be kept, it is made for one process alone.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from maestrale.engines.cpu.kernel import compilers
from maestrale.engines.cpu.kernel.trust import not_only_ours, unfit
from maestrale.errors import EngineError
from maestrale.files import replace_file

SOURCES = Path(__file__).parent
# -ffp-contract=off: a multiplication and an addition become one only where that is written; this
# is what makes all levels give the same bits.
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-pthread", "-g0"),
    *("-fvisibility=hidden", "-fno-sanitize=undefined"),
)
# Never unloaded: its threads may still be on their way out.
LINK_FLAGS = ("-shared", "-pthread", "-Wl,-z,nodelete", "-s")
SECONDS = 600.0  # to compile one file; some seconds each
PREBUILT = SOURCES  # where a wheel brings the libraries of all targets (hatch_build.py)
KEPT = "kernel"  # the folder of the cache

CompileProgress = Callable[[str, float | None], None]
logger = logging.getLogger(__name__)


def library(cache_dir: Path, progress: CompileProgress) -> Path:
    """The file to load: prebuilt, or from the cache, or compiled now.

    Where the cache can't keep it, it is made for this process alone, and the log says so.
    Raises: EngineError when it can't be made.
    """
    folder = cache_dir / KEPT
    found = prebuilt() or usable(folder / name())
    if found is not None:
        return found
    reason = _why_not_kept(folder)
    if not reason:
        return build(folder, compilers.compiler(cache_dir, progress), progress)
    if not _in_memory.cache_info().currsize:
        logger.warning(
            "%s can't keep the CPU engine's kernel: %s. It is compiled at each start, which takes "
            "some seconds.",
            *(folder, reason),
        )
    return _in_memory(cache_dir, progress)


def prebuilt() -> Path | None:
    """The library that came with the package, where it fits the sources and this machine.

    Whoever can write it can write this file too: it is believed like this file.
    """
    file = PREBUILT / name()
    may_run = file.is_file() and not os.statvfs(file).f_flag & os.ST_NOEXEC
    return file if may_run else None


def build(folder: Path, compiler: compilers.Compiler, progress: CompileProgress) -> Path:
    """Compile the library into `folder`, whole or not at all. Raises: EngineError."""
    done = folder / name(compiler.target)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, done.name)
            _compile(compiler, Path(scratch), file, progress)
            replace_file(done, file.read_bytes(), mode=0o755)
    except OSError as error:
        raise EngineError(
            f"The CPU engine's kernel can't be made in {folder}: {error.strerror or error}."
        ) from error
    return done


@functools.cache
def name(target: compilers.CompileTarget | None = None) -> str:
    """The library's file name, which names all that it is made from but the compiler."""
    target = target or compilers.CompileTarget.here()
    spelled = compilers.Compiler((), target=target)
    parts = [*FLAGS, *LINK_FLAGS, target.machine, target.libc]
    for level in ("", *target.levels()):
        parts += spelled.flags(level)
    for file in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.hpp"), *SOURCES.glob("*.h")]):
        parts += [file.name, file.read_text("utf-8")]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"libmaestrale-{target.machine}-{digest}.so"


def sources(target: compilers.CompileTarget) -> list[tuple[Path, str]]:
    """The files to compile and the level of each, in the order in which they are linked: of an
    inline function that several have, the linker keeps the first, which must run everywhere.
    """
    every = ("level_scalar", "level_exact")
    common = [path for path in sorted(SOURCES.glob("*.cpp")) if not path.stem.startswith("level_")]
    files = [(path, "") for path in [*common, *(SOURCES / f"{stem}.cpp" for stem in every)]]
    return files + [(SOURCES / f"level_{level}.cpp", level) for level in target.levels()]


def _why_not_kept(folder: Path) -> str:
    """Why `folder` can't keep the library, as a clause; empty: it can. It is made if missing."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        return unfit(folder) or ("" if os.access(folder, os.W_OK) else "it can't be written")
    except OSError as error:
        return str(error.strerror)


def usable(file: Path) -> Path | None:
    """`file`, where it is there and may be loaded."""
    with suppress(OSError):
        found = file.resolve(strict=True)
        if not unfit(found.parent) and not not_only_ours(found):
            return found
    return None


@functools.cache
def _in_memory(cache_dir: Path, progress: CompileProgress) -> Path:
    """Compiled for this process alone: nothing is left of it, and no mount forbids to load it."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            fetched = cache_dir if os.access(cache_dir, os.W_OK) else Path(scratch)
            file = Path(scratch, name())
            _compile(compilers.compiler(fetched, progress), Path(scratch), file, progress)
            number = os.memfd_create(name())
            with open(number, "wb", closefd=False) as memory:
                memory.write(file.read_bytes())
    except OSError as error:
        raise EngineError(
            f"The CPU engine's kernel can't be made in {tempfile.gettempdir()}: "
            f"{error.strerror or error}."
        ) from error
    return Path(f"/proc/self/fd/{number}")


def _compile(
    compiler: compilers.Compiler, scratch: Path, target: Path, progress: CompileProgress
) -> None:
    """Each file by itself, as many at once as there are CPUs, the longest first; then linked."""
    files = sources(compiler.target)
    done = 0
    lock = threading.Lock()
    progress("Compiling the CPU engine's kernel (once)", 0.0)

    def compile_one(entry: tuple[Path, str]) -> None:
        nonlocal done
        path, level = entry
        made = scratch / f"{path.stem}.o"
        _run(compiler, [*FLAGS, *compiler.flags(level), "-c", str(path), "-o", str(made)])
        with lock:
            done += 1
            progress("Compiling the CPU engine's kernel (once)", done / (len(files) + 1))

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
        jobs = [executor.submit(compile_one, entry) for entry in reversed(files)]
        try:
            for job in jobs:
                job.result()
        finally:
            executor.shutdown(cancel_futures=True)
    objects = [str(scratch / f"{path.stem}.o") for path, _ in files]
    _run(compiler, [*LINK_FLAGS, *compiler.link_flags(), "-o", str(target), *objects])
    if not target.is_file():
        raise EngineError(f"{compiler.command[0]} made no library, and gave no reason.")


def _run(compiler: compilers.Compiler, arguments: list[str]) -> None:
    """The compiler, once. Raises: EngineError with the first error that it names."""
    # In a session of its own: the compiler proper is a child of the command.
    process = subprocess.Popen(  # noqa: S603 - what this user's CXX names, or the system's own
        [*compiler.command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=compiler.environment(),
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{compiler.command[0]} took more than {SECONDS:.0f} s to compile a file of the CPU "
            "engine's kernel, and was ended."
        ) from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        reason = (errors or lines or [f"it gave no reason (exit status {process.returncode})"])[0]
        raise EngineError(
            f"{compiler.command[0]} could not compile the CPU engine's kernel: "
            f"{reason.rstrip('.')}. Another compiler can be named with CXX."
        )
