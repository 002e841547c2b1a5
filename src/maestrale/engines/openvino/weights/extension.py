"""The operation in `projection.cpp`, made by the machine's own C++ compiler at its first use.

OpenVINO has products of 8-bit activations only for CPUs with VNNI or AMX, and rounds these over
groups of rows. Ours takes half the time of its float32 ones without VNNI, and less with it. The
compiler needs a few seconds; the result is kept beside the packed weights.

It is code, and so loaded only from where nobody but this user and root can write. Where it can't
be kept, it is made for one process alone.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maestrale.engines.openvino.cpu import cpu_identity
from maestrale.errors import EngineError

SOURCE = Path(__file__).with_name("projection.cpp")
HEADERS = sorted(SOURCE.parent.glob("*.hpp"))
COMPILERS = ("c++", "g++", "clang++")
INSTALL = "install one (on Debian and Ubuntu: apt install g++)"
INSTRUCTIONS = ("avx2", "fma", "f16c")
# Never unloaded: a model's nodes outlive the Core, and then still end in the library's code.
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-Wl,-z,nodelete")
LIBRARIES = ("libopenvino.so", "libtbb.so")
SECONDS = 120.0  # to compile it; 4 to 6 on two cores
# Compiled when the environment was made, as in the image, which has no compiler.
SHIPPED = Path(sys.prefix, "share/maestrale/models")

logger = logging.getLogger(__name__)


def cpu_lacks() -> str:
    """What this CPU lacks for the kernel, as a clause; empty where it can run it."""
    features = cpu_identity().split()
    if platform.machine() == "x86_64" and all(name in features for name in INSTRUCTIONS):
        return ""
    return "this CPU lacks AVX2, FMA or F16C, which its kernel is written for"


def unavailable(folder: Path | None = None) -> str:
    """Why there can be no extension, and what to do; empty where it is there (in `folder`, or
    shipped), or this machine can make it.
    """
    if reason := cpu_lacks():
        return reason
    if kept(folder) is not None:
        return ""
    command = _compiler()
    if command is None:
        return f"there is no C++ compiler; {INSTALL}"
    if shutil.which(command[0]) is None:
        return f"CXX names {command[0]!r}, and there is no such program; correct or unset it"
    if _library(LIBRARIES[0]) is None:
        return "this build of OpenVINO comes without the libraries to link with"
    return ""


def kept(folder: Path | None) -> Path | None:
    """The compiled extension of `folder`, or the shipped one, where it may be loaded from there."""
    for place in (folder, SHIPPED) if folder else (SHIPPED,):
        try:
            file = (place / _name()).resolve(strict=True)
            if not _unfit(file.parent) and not _not_only_ours(file):
                return file
        except OSError:
            continue  # not there
    return None


def refusal(reason: str) -> EngineError:
    """The error for who asks for the form a8 where `unavailable` gives this reason."""
    return EngineError(
        f"--weight-format a8 can't be used here: {reason}. Or leave the option out: the fastest "
        "of the other forms is found at the first start."
    )


def extension(folder: Path | None) -> Path:
    """The compiled extension, from `folder`; made now where it is missing.

    Where `folder` can't keep it, it is made for this process alone, and the log says so; None
    asks for that. Raises: EngineError when it can't be made.
    """
    if reason := unavailable(folder):
        raise refusal(reason)
    done = kept(folder)
    if done is not None:
        return done
    if folder is None:
        return _in_memory()
    try:
        reason = _unfit(folder) or ("" if os.access(folder, os.W_OK) else "it can't be written")
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        if not _in_memory.cache_info().currsize:
            logger.warning(
                "%s can't keep the kernel for 8-bit activations: %s. It is compiled at each "
                "start, which takes some seconds.",
                *(folder, reason),
            )
        return _in_memory()
    return _make(folder)


def add_extension(core: Any, folder: Path | None) -> Path:
    """Load `extension(folder)` into an OpenVINO Core; returns its file.

    Raises: EngineError when it can't be made or loaded.
    """
    file = extension(folder)
    try:
        core.add_extension(file)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].rpartition("error happened: ")[2]
        raise EngineError(
            f"The kernel for 8-bit activations can't be loaded: {reason.rstrip('.')}. Remove "
            f"{file}, and the next start makes it anew."
        ) from error
    return file


@functools.cache
def digest() -> str:
    """Of all that the compiled file depends on, but the compiler."""
    sources = [file.read_text() for file in (SOURCE, *HEADERS)]
    parts = [*sources, version("openvino"), *FLAGS, *INSTRUCTIONS]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _name() -> str:
    return f"projection-{digest()}.so"


def _unfit(folder: Path) -> str:
    """Why code can't be loaded from `folder`, as a clause; empty: it can. Raises: OSError."""
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return "it is mounted with 'noexec'"
    return _not_only_ours(folder)


def _not_only_ours(path: Path) -> str:
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"{path.name} belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"other users may write {path.name}"
    return ""


def _make(folder: Path) -> Path:
    done = folder / _name()
    _remove_abandoned(done)
    draft = done.with_name(f"{done.name}.{os.getpid()}")
    try:
        _compile(draft)
        draft.chmod(0o755)
        draft.replace(done)
    except OSError as error:
        raise EngineError(
            f"The kernel for 8-bit activations can't be kept in {folder}: {error.strerror}."
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return done


def _remove_abandoned(done: Path) -> None:
    """What processes left that were killed: each draft bears its process's number."""
    for draft in done.parent.glob(f"{done.name}.*"):
        if not Path("/proc", draft.suffix[1:]).exists():
            draft.unlink(missing_ok=True)


@functools.cache
def _in_memory() -> Path:
    """Compiled for this process alone: nothing is left of it, and no mount forbids to load it."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, _name())
            _compile(file)
            number = os.memfd_create(_name())
            with open(number, "wb", closefd=False) as memory:
                memory.write(file.read_bytes())
    except OSError as error:
        raise EngineError(
            f"The kernel for 8-bit activations can't be made in {tempfile.gettempdir()}: {error}."
        ) from error
    return Path(f"/proc/self/fd/{number}")


def _compile(target: Path) -> None:
    includes = (_openvino() / "include", HEADERS[0].parent)
    command = [
        *(_compiler() or COMPILERS[:1]),
        *(*FLAGS, *(f"-m{name}" for name in INSTRUCTIONS)),
        *(f"-I{folder}" for folder in includes),
        *(str(SOURCE), "-o", str(target)),
        *(str(_library(name)) for name in LIBRARIES),
    ]
    # In a session of its own: the compiler proper is a child of the command.
    process = subprocess.Popen(  # noqa: S603 - what this user's CXX names, or the system's own
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{command[0]} took more than {SECONDS:.0f} s to compile the kernel for 8-bit "
            "activations, and was ended."
        ) from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode or not target.is_file():
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        reason = (errors or lines or [f"it gave no reason (exit status {process.returncode})"])[0]
        raise EngineError(
            f"{command[0]} could not compile the kernel for 8-bit activations: "
            f"{reason.rstrip('.')}."
        )


def _compiler() -> list[str] | None:
    """The command that CXX asks for, else the first of the usual ones that is there."""
    asked = os.environ.get("CXX", "").split()
    found = next((name for name in COMPILERS if shutil.which(name)), None)
    return asked or (None if found is None else [found])


def _openvino() -> Path:
    """Where the package lies, without importing it."""
    spec = find_spec("openvino")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _library(name: str) -> Path | None:
    """OpenVINO's own copy, which this process has loaded; its name ends with a version."""
    return next((_openvino() / "libs").glob(f"{name}*"), None)
