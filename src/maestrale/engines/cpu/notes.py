"""What was found out about a model on this machine, kept in the model's folder.

What was found holds for one CPU, one version of the kernel and one set of settings: these make the
key under which it is noted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maestrale import __version__
from maestrale.files import replace_file


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


logger = logging.getLogger(__name__)


def note_key(settings: Sequence[object]) -> str:
    """A short digest of the CPU, the version of this program and `settings`."""
    parts = [cpu_identity(), __version__, *map(str, settings)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def recall(file: Path, key: str) -> Any:
    """What was noted under `key`, or None."""
    return _notes(file).get(key)


def remember(file: Path, key: str, value: Any) -> bool:
    """Note it for the next start. False where the folder can't be written: tried again then."""
    try:
        replace_file(file, json.dumps(_notes(file) | {key: value}))
    except OSError as error:
        logger.info("What was found on this machine can't be noted in %s: %s", file, error)
        return False
    return True


def _notes(file: Path) -> dict[str, Any]:
    try:
        notes = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}  # none yet, or a torn one: try again
    return notes if isinstance(notes, dict) else {}
