"""Checks safetensors by their headers: whether the weights they promise are there, in full.

Layout: the header's length (8 bytes, little-endian), the header as JSON (name → dtype, shape,
data_offsets), the weights.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.gguf_file import LFS_POINTER
from maestrale.models.tensor_info import TensorInfo

MAX_HEADER = 100_000_000  # bytes, as the format's own library has it
# Bytes of an element; types not listed aren't measured.
_WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


def check_safetensors(folder: Path, names: Iterable[str]) -> None:
    """Check each file of weights, and that those of the index are there.

    Raises: ModelError for what is missing, truncated or damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing = [name for name in indexed_files(index) if not (folder / name).is_file()]
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
    return sum(math.prod(tensor.shape) for tensor in read_safetensors(path).values())


def read_safetensors(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file by name; `type` is as safetensors writes it (F32, BF16, U8, ...).

    Raises: ModelError when the file is truncated or damaged, or isn't what it is called.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            if head == LFS_POINTER[:8]:
                raise ModelError(
                    f"{path} is a Git LFS pointer, not the file that it stands for. Fetch that "
                    "with `git lfs pull`, or download it from the model's page."
                )
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else None
            if length is None or length > min(size - 8, MAX_HEADER):
                raise _damaged(path, "its header is cut off")
            header = json.loads(file.read(length), object_pairs_hook=partial(_named_once, path))
    except OSError as error:
        raise ModelError(f"Can't read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    start = 8 + length
    tensors = {
        name: _tensor(path, name, entry, start)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    end = max((tensor.offset + tensor.size for tensor in tensors.values()), default=start)
    if end > size:
        raise _damaged(path, f"it has {size:,} bytes and promises {end:,}")
    return tensors


def _named_once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header: JSON allows a name twice, the format doesn't."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _damaged(path, f"its header says {twice!r} twice")
    return found


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    known = isinstance(entry, Mapping)
    kind, offsets, shape = (
        (entry.get(key) for key in ("dtype", "data_offsets", "shape")) if known else (None,) * 3
    )
    if not isinstance(offsets, list) or not isinstance(shape, list) or len(offsets) != 2:
        raise _damaged(path, "its table of weights can't be read")
    numbers = (*offsets, *shape)
    if not all(type(each) is int and 0 <= each < 1 << 62 for each in numbers):
        raise _damaged(path, "its table of weights can't be read")
    begin, end = offsets
    width = _WIDTHS.get(kind) if isinstance(kind, str) else 0
    if end < begin or width == 0 or (width and math.prod(shape) * width != end - begin):
        raise _damaged(
            path, f"the tensor {name!r} is {shape} {kind}, which {end - begin} bytes aren't"
        )
    return TensorInfo(name, str(kind), tuple(shape), path, start + begin, end - begin)


def indexed_files(index: Path) -> list[str]:
    """The files that an index of safetensors names. Raises: ModelError."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{index} is no index of safetensors: it has no map of weights. Fetch it again."
        ) from error
    for name in names:
        if not isinstance(name, str) or "/" in name or name.startswith("."):
            raise ModelError(f"{index} names {name!r}, which is no file of this folder.")
    return names


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} is truncated or damaged: {what}. The download was probably cut off; fetch it "
        "again."
    )
