"""From where code may be loaded or run: where nobody but this user and root can write it."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def unfit(folder: Path) -> str:
    """Why code can't be loaded from `folder`, as a clause; empty: it can. Raises: OSError."""
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return "it is mounted with 'noexec'"
    return not_only_ours(folder)


def not_only_ours(path: Path) -> str:
    """Who else may have written `path`, as a clause; empty: nobody. Raises: OSError."""
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"{path.name} belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"other users may write {path.name}"
    return ""
