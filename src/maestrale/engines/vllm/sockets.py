"""The folder of the sockets between vLLM's processes. vLLM leaves them behind when it is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "maestrale-vllm-"


def make_sockets_folder() -> Path:
    """A new folder that only this user may enter, named by this process; those of dead ones go."""
    place = Path(tempfile.gettempdir())
    for folder in place.glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
