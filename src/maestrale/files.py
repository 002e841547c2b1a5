"""Files written whole or not at all, whatever else reads or ends meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def replace_file(
    path: Path, data: bytes | str, *, mode: int | None = None, durable: bool = False
) -> None:
    """Write `data` to `path`; readers find what was there before, or all of it.

    `mode`: who may read and write it; None: as for any new file. `durable`: it is on the disk when
    this returns, so that a loss of power can't undo it. Raises: OSError; nothing is left then.
    """
    content = data.encode() if isinstance(data, str) else data
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        handle = os.open(draft, flags, 0o666 if mode is None else mode & 0o600)
        with open(handle, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    if durable:
        _sync_folder(path.absolute().parent)


def _sync_folder(folder: Path) -> None:
    """Else the new name may be lost, though the content is there. Not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
