"""Reads what a GGUF file says of itself: metadata and the table of tensors, not the weights.

Layout, all little-endian: magic, version, tensor count, metadata count; the metadata as
(key, type, value); the tensors as (name, dimensions, type, offset); padding; the weights.
Model files come from anywhere, so every count and length is checked against the file's size. The
file is read and not mapped: one that is cut meanwhile would kill the process.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from maestrale.errors import ModelError

MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip

# ggml type → (weights in a block, bytes of a block); types not listed aren't measured
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176),
    14: (256, 210), 15: (256, 292), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 30: (1, 2),
}  # fmt: skip


@dataclass(frozen=True)
class GGUFFile:
    """`metadata` by key (arrays are lists), and the names of the tensors."""

    metadata: dict[str, Any]
    tensor_names: tuple[str, ...]


def read_gguf(path: Path) -> GGUFFile:
    """Read metadata and tensor table, and check that the weights they promise are there.

    Raises: ModelError when the file is no GGUF, damaged or truncated.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ModelError(
                    f"{path} is not a GGUF file (it doesn't begin with 'GGUF'). "
                    "Download it again, or give another file."
                )
            return _read(_Cursor(file, path))
    except OSError as error:
        raise ModelError(f"Can't read {path}: {error.strerror}.") from error


def _read(cursor: _Cursor) -> GGUFFile:
    version = cursor.number("I")
    if version not in (2, 3):
        raise ModelError(f"{cursor.path} is GGUF version {version}; versions 2 and 3 can be read.")
    tensor_count, entry_count = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.number("I"))
    names: list[str] = []
    end = 0
    for _ in range(tensor_count):
        names.append(cursor.string())
        dimensions = [cursor.number("Q") for _ in range(min(cursor.number("I"), 8))]
        kind, offset = cursor.number("I"), cursor.number("Q")
        weights, size = _BLOCKS.get(kind, (1, 0))
        end = max(end, offset + math.prod(dimensions) // weights * size)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise cursor.damaged("its alignment is no positive number")
    needed = -(-cursor.at // alignment) * alignment + end
    if needed > cursor.size:
        raise cursor.truncated(needed)
    return GGUFFile(metadata, tuple(names))


class _Cursor:
    """Takes values one after the other; running past the end means a truncated file."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self.path, self.at = file, path, file.tell()
        self.size = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > self.size:
            raise self.truncated(end)
        taken = self._file.read(count)
        if len(taken) < count:  # cut since it was opened
            raise self.truncated(end)
        self.at = end
        return taken

    def number(self, form: str) -> Any:
        form = "<" + form
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise self.damaged("a text in it is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise self.damaged(f"metadata of unknown type {kind}")
        item, count = self.number("I"), self.number("Q")
        if item == _STRING:
            if count * 8 > self.size:
                raise self.truncated(self.at + count * 8)
            return [self.string() for _ in range(count)]
        if item not in _SCALARS:
            raise self.damaged(f"an array of unknown type {item}")
        size = struct.calcsize("<" + _SCALARS[item])
        raw = self.take(count * size)
        return list(struct.unpack(f"<{count}{_SCALARS[item]}", raw))

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is a damaged GGUF file: {what}. Download it again.")

    def truncated(self, needed: int) -> ModelError:
        return ModelError(
            f"{self.path} is truncated: it has {self.size:,} bytes and promises "
            f"{needed:,}. The download was probably cut off; download it again."
        )
