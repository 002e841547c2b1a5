"""How large an exact step may be on this machine: found by trying, then remembered.

Trying takes about a second, which every start but the first can save. What was found holds for
one CPU, one number of threads, one set of options and one version of OpenVINO; these are the
key under which it is noted in the model's folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maestrale.engines.openvino.cpu import cpu_identity

NOTES = "exact_steps.json"

logger = logging.getLogger(__name__)


def exactness_key(options: Mapping[str, Any]) -> str:
    """What the size of an exact step depends on beside the model, as a short digest."""
    parts = [cpu_identity(), version("openvino"), sorted(map(str, options.items()))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def recall(folder: Path, key: str) -> int | None:
    """The largest exact step in tokens (0: none is exact), or None when it was never tried."""
    known = _notes(folder).get(key)
    return known if isinstance(known, int) else None


def remember(folder: Path, key: str, tokens: int) -> None:
    """Note it for the next start; a folder that can't be written only costs that start a second."""
    draft = folder / f"{NOTES}.{os.getpid()}"
    try:
        draft.write_text(json.dumps(_notes(folder) | {key: tokens}))
        draft.replace(folder / NOTES)
    except OSError as error:
        logger.info("The size of exact steps can't be noted in %s: %s", folder, error)


def _notes(folder: Path) -> dict[str, Any]:
    try:
        notes = json.loads((folder / NOTES).read_bytes())
    except (OSError, ValueError):
        return {}  # none yet, or a torn one: try again
    return notes if isinstance(notes, dict) else {}
