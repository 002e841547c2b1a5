"""Model files mapped into memory, and the bytes of a tensor in them."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maestrale.errors import ModelError
from maestrale.models.tensor_info import TensorInfo

MAX_VECTOR = 1 << 28  # elements that are ever turned into float32 at once


class MappedTensors:
    """`tensors` by name. Files are mapped when they are first needed, and never copied whole."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors
        self._maps: dict[Path, mmap.mmap] = {}
        self._inodes: dict[Path, int] = {}

    def bytes_of(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """The bytes of a tensor, as they lie in the file. Raises: ModelError.

        The file's size is asked each time: reading beyond the end of one that was cut meanwhile
        would kill the process without a word.
        """
        data = self._map(tensor.file)
        if tensor.offset + tensor.size > min(len(data), self._size_now(tensor.file)):
            raise ModelError(
                f"{tensor.file} was cut while it was read: the tensor {tensor.name!r} is no longer "
                "there in full. Download the file again."
            )
        return np.frombuffer(data, np.uint8, tensor.size, tensor.offset)

    def is_plain(self, tensor: TensorInfo) -> bool:
        """Whether `values` reads a tensor's type."""
        return tensor.type in ("F32", "F16", "BF16")

    def values(self, tensor: TensorInfo) -> NDArray[np.float32]:
        """The values of a small tensor that isn't quantised, in its shape. Raises: ModelError."""
        raw = self.bytes_of(tensor)
        if tensor.size > 4 * MAX_VECTOR:
            raise ModelError(
                f"{tensor.file}: the tensor {tensor.name!r} is too large for a vector."
            )
        if tensor.type == "F32":
            flat = raw.view(np.float32) if tensor.offset % 4 == 0 else _copied(raw, np.float32)
        elif tensor.type == "F16":
            flat = _copied(raw, np.float16).astype(np.float32)
        elif tensor.type == "BF16":
            flat = (_copied(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            raise ModelError(
                f"{tensor.file}: the tensor {tensor.name!r} has the type {tensor.type} where F32, "
                "F16 or BF16 is served. Get the model in another quantisation."
            )
        return flat.reshape(tensor.shape)

    def release(self, tensor: TensorInfo) -> None:
        """Let go of the memory that a tensor's pages take; reading it again maps them again."""
        data = self._maps.get(tensor.file)
        begin = -(-tensor.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.offset + tensor.size) // mmap.PAGESIZE * mmap.PAGESIZE
        if data is not None and end > begin:
            data.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def close(self) -> None:
        """Unmap the files. What still looks into one keeps it until it is gone."""
        for data in self._maps.values():
            with contextlib.suppress(BufferError):
                data.close()
        self._maps.clear()

    def _size_now(self, path: Path) -> int:
        """Of the file that is mapped; one that was replaced or removed is still there in full."""
        with contextlib.suppress(OSError):
            status = path.stat()
            if status.st_ino == self._inodes[path]:
                return status.st_size
        return len(self._maps[path])

    def _map(self, path: Path) -> mmap.mmap:
        found = self._maps.get(path)
        if found is None:
            try:
                with path.open("rb") as file:
                    found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                    self._inodes[path] = os.fstat(file.fileno()).st_ino
            except (OSError, ValueError) as error:
                raise ModelError(f"Can't read {path}: {error}.") from error
            self._maps[path] = found
        return found


def _copied(raw: NDArray[np.uint8], kind: Any) -> NDArray[Any]:
    """The bytes as numbers of a kind, wherever they begin."""
    return np.frombuffer(raw.tobytes(), kind)
