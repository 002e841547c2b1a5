"""What an error of the system means for a person, where no command said it better.

Such an error is the machine's, not the program's: no rights, no room, no folder for temporary
files, a package that is gone. Imports nothing that could itself be missing.
"""

from __future__ import annotations

import errno
import os
import sys

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_HANDLES = (errno.EMFILE, errno.ENFILE)
_BROKEN_DISK = (errno.EIO, errno.ESTALE)
OURS = "maestrale"


def explained(error: BaseException) -> str | None:
    """One message: what happened, why, what to do. None for what is no error of the system."""
    if isinstance(error, ImportError):
        return _missing_package(error)
    if isinstance(error, MemoryError):
        return (
            "There is not enough memory. End other programs, or give this one more (a container "
            "and a service have limits of their own)."
        )
    if isinstance(error, OSError):
        return _of_the_system(error)
    return None


def _missing_package(error: ImportError) -> str | None:
    package = (error.name or "").partition(".")[0]
    if not package or package == OURS:
        return None
    return (
        f"The package {package} is missing from {sys.prefix}, or damaged ({error}). In a checkout "
        "delete that folder and start anew: it is made again. Elsewhere: pip install "
        f"--force-reinstall {OURS}"
    )


def _of_the_system(error: OSError) -> str | None:
    if "No usable temporary directory" in str(error):
        return (
            "There is no folder for temporary files that can be written and has room: none of "
            "$TMPDIR, /tmp, /var/tmp and the working folder. Set TMPDIR to one."
        )
    what = _name(error)
    if error.errno in _NO_ROOM:
        return f"The disk is full{f': {what} can not be written' if what else ''}. Make room."
    if error.errno in _NO_HANDLES:
        return "Too many files are open at once. Raise the limit: ulimit -n 65536."
    if error.errno == errno.ENOMEM:
        return explained(MemoryError())
    if not what:
        return None
    if error.errno in _NO_RIGHTS:
        return (
            f"{what}: {error.strerror}. Run this as the user that it belongs to, give this one "
            "rights to it, or name another place (XDG_CACHE_HOME, XDG_CONFIG_HOME, HF_HOME)."
        )
    if error.errno in _BROKEN_DISK:
        return f"{what}: {error.strerror}. The disk, or the network to it, fails."
    return f"{what}: {error.strerror}."


def _name(error: OSError) -> str:
    name = error.filename2 or error.filename
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else ""
