"""A model in GGUF, in one file or in the parts that llama-gguf-split makes of one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.gguf_file import GGUFFile, read_gguf
from maestrale.models.tensor_info import TensorInfo

MAX_PARTS = 10_000
_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def gguf_parts(path: Path) -> list[Path]:
    """The files of the model that `path` is one of, by the names that its maker gave them."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match["stem"], min(int(match["count"]), MAX_PARTS)
    return [path.with_name(f"{stem}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]


def read_gguf_model(path: Path, *, texts: bool = True) -> GGUFFile:
    """Metadata and tensors of the model that `path` is, or is a part of; `texts` as in `read_gguf`.

    Raises: ModelError for what `read_gguf` refuses, and where a part is missing or another model's.
    """
    first = read_gguf(path, texts=texts)
    count = first.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return first
    paths = gguf_parts(path)
    if len(paths) != count:
        raise ModelError(
            f"{path} is one of {count} parts of a model and must be called as its maker called it, "
            f"NAME-00001-of-{count:05}.gguf, with the other parts beside it."
        )
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise ModelError(
            f"{path} is one of {count} parts of a model, of which {len(missing)} are missing: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Put them beside it."
        )
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, Any] = {}
    for number, part_path in enumerate(paths):
        part = first if part_path == path else read_gguf(part_path, texts=texts)
        said = part.metadata.get("split.no"), part.metadata.get("split.count")
        if said != (number, count):
            raise ModelError(
                f"{part_path} says that it is part {said[0]} of {said[1]}, counted from 0, where "
                f"part {number} of {count} should be. Download it again."
            )
        metadata = part.metadata if number == 0 else metadata
        twice = next((name for name in part.tensors if name in tensors), None)
        if twice is not None:
            raise ModelError(f"{part_path}: the tensor {twice!r} is in an earlier part, too.")
        tensors |= part.tensors
    total = metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ModelError(
            f"{paths[0]} promises {total} tensors in all parts, which have {len(tensors)}. "
            "Download the parts again."
        )
    return replace(first, metadata=metadata, tensors=tensors)
