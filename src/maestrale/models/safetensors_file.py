"""Checks safetensors by their headers: whether the weights they promise are there, in full.

Layout: the header's length (8 bytes, little-endian), the header as JSON (name → dtype, shape,
data_offsets), the weights.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maestrale.errors import ModelError

MAX_HEADER = 100_000_000  # bytes, as the format's own library has it


def check_safetensors(folder: Path, names: Iterable[str]) -> None:
    """Check each file of weights, and that those of the index are there.

    Raises: ModelError for what is missing, truncated or damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing = [name for name in _indexed(index) if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks {len(missing)} of the files that {index.name} names, "
                f"{missing[0]} first. The download was probably cut off; fetch it again."
            )
    for name in names:
        if name.endswith(".safetensors"):
            count_parameters(folder / name)


def count_parameters(path: Path) -> int:
    """The number of weights in one file. Raises: ModelError when it is truncated or damaged."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else None
            if length is None or length > min(size - 8, MAX_HEADER):
                raise _damaged(path, "its header is cut off")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(f"Can't read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    end = count = 0
    for name, entry in header.items():
        if name != "__metadata__":
            shape, last = _extent(path, entry)
            end = max(end, last)
            count += math.prod(shape)
    if 8 + length + end > size:
        raise _damaged(path, f"it has {size:,} bytes and promises {8 + length + end:,}")
    return count


def _extent(path: Path, entry: Any) -> tuple[list[int], int]:
    """One tensor's shape, and where its bytes end. Raises: ModelError."""
    known = isinstance(entry, Mapping)
    offsets, shape = (entry.get("data_offsets"), entry.get("shape")) if known else (None, None)
    if not isinstance(offsets, list) or not isinstance(shape, list) or len(offsets) != 2:
        raise _damaged(path, "its table of weights can't be read")
    if not all(isinstance(each, int) and each >= 0 for each in (*offsets, *shape)):
        raise _damaged(path, "its table of weights can't be read")
    return shape, int(offsets[1])


def _indexed(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{index} is no index of safetensors: {error}") from error
    for name in names:
        if not isinstance(name, str) or "/" in name or name.startswith("."):
            raise ModelError(f"{index} names {name!r}, which is no file of this folder.")
    return names


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} is truncated or damaged: {what}. The download was probably cut off; fetch it "
        "again."
    )
