"""Reads what a GGUF file says of itself: metadata and the table of tensors, not the weights.

Layout, all little-endian: magic, version, tensor count, metadata count; the metadata as
(key, type, value); the tensors as (name, dimensions, type, offset); padding; the weights.
Model files come from anywhere, so every count and length is checked against the file's size. The
head is read and not mapped: a file that is cut meanwhile would kill the process.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from maestrale.errors import ModelError
from maestrale.models.tensor_info import GGML_TYPES, TensorInfo

# general.type of GGUF files that hold no language model, and what they are
_OTHER_TYPES = {
    "mmproj": "the image or audio part of a model (mmproj). Give the file of the language model",
    "imatrix": "a table of importances, made for quantising. Give the file of the model",
}
_OTHER_TOKENIZERS = {
    "bert": "WordPiece, an encoder's",
    "t5": "T5's",
    "rwkv": "RWKV's",
    "plamo2": "PLaMo 2's",
    "whitespace": "one of single words, an encoder's",
    "hybriddna": "one of DNA sequences",
}


def check_is_model(metadata: Mapping[str, Any], path: Path) -> None:
    """Raises: ModelError for a GGUF file that holds something else than a language model."""
    kind = metadata.get("general.type")
    architecture = metadata.get("general.architecture")
    if kind == "adapter" or any(key.startswith("adapter.") for key in metadata):
        raise ModelError(
            f"{path} is an adapter (LoRA), not a model by itself. Merge it into its base model "
            "(llama-export-lora), and give the merged file."
        )
    if architecture == "clip":
        kind = "mmproj"
    if isinstance(kind, str) and kind in _OTHER_TYPES:
        raise ModelError(f"{path} is {_OTHER_TYPES[kind]}.")
    name = metadata.get("tokenizer.ggml.model")
    if isinstance(name, str) and name in _OTHER_TOKENIZERS:
        raise ModelError(
            f"{path} has a tokenizer of a kind that is not served here: {_OTHER_TOKENIZERS[name]} "
            f"({name!r}). Served are byte-level BPE, SentencePiece and Mistral's tokenizers."
        )


MAGIC = b"GGUF"
LFS_POINTER = b"version https://git-lfs"
MAX_DIMENSIONS = 4  # as ggml has it
MAX_ALIGNMENT = 1 << 20
SHORT_ARRAY = 64  # texts that are read in any case: labels, no vocabulary
_PAGE = 1 << 20  # bytes read ahead
_LENGTH = struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass(frozen=True)
class GGUFFile:
    """`metadata` by key (arrays are lists), and the tensors by name, in the file's order."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_gguf(path: Path, *, texts: bool = True) -> GGUFFile:
    """Read metadata and tensor table of one file, and check that its weights are there.

    `texts`: long arrays of texts, which are the vocabulary, are wanted; else they are empty, which
    takes half the time. Raises: ModelError when the file is no GGUF, damaged or truncated.
    """
    try:
        with path.open("rb") as file:
            return _read(_Cursor(file, path, texts))
    except OSError as error:
        raise ModelError(f"Can't read {path}: {error.strerror}.") from error


def _read(cursor: _Cursor) -> GGUFFile:
    cursor.check_magic()
    version = cursor.number("I")
    if version in (2 << 24, 3 << 24):
        raise ModelError(
            f"{cursor.path} is a GGUF file for big-endian machines, which can't be read here. Take "
            "the ordinary file of the model, or turn it with gguf-convert-endian."
        )
    if version not in (2, 3):
        raise ModelError(f"{cursor.path} is GGUF version {version}; versions 2 and 3 can be read.")
    tensor_count, entry_count = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = cursor.string()
        if key in metadata:
            raise cursor.damaged(f"it says {key!r} twice")
        metadata[key] = cursor.value(cursor.number("I"))
    found = list(_table(cursor, tensor_count))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= MAX_ALIGNMENT:
        raise cursor.damaged("its alignment is no sensible number")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, kind, shape, offset in found:
        if name in tensors:
            raise cursor.damaged(f"it has two tensors called {name!r}")
        tensor = _tensor(cursor, name, kind, shape, start + offset)
        if offset % alignment:
            raise cursor.damaged(f"the tensor {name!r} begins at {offset:,}, between its places")
        if tensor.offset + tensor.size > cursor.size:
            raise cursor.truncated(tensor.offset + tensor.size, name)
        tensors[name] = tensor
    return GGUFFile(metadata, tensors)


def _table(cursor: _Cursor, count: int) -> Iterator[tuple[str, int, tuple[int, ...], int]]:
    """(name, type, shape, offset) of each tensor; a count that is too large ends at the end."""
    for _ in range(count):
        name = cursor.string()
        dimensions = cursor.number("I")
        if dimensions > MAX_DIMENSIONS:
            raise cursor.damaged(f"the tensor {name!r} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))
        yield name, cursor.number("I"), shape[::-1], cursor.number("Q")


def _tensor(
    cursor: _Cursor, name: str, number: int, shape: tuple[int, ...], offset: int
) -> TensorInfo:
    kind = GGML_TYPES.get(number)
    if kind is None:
        raise ModelError(
            f"{cursor.path}: the tensor {name!r} has the type {number}, which isn't known here. "
            "Get the model in another quantisation, such as Q4_K_M or Q8_0."
        )
    if not shape or 0 in shape or shape[-1] % kind.elements:
        raise cursor.damaged(f"the tensor {name!r} is {shape} {kind.name}, which can't be")
    size = math.prod(shape) // kind.elements * kind.size
    return TensorInfo(name, kind.name, shape, cursor.path, offset, size)


class _Cursor:
    """Takes values one after the other; running past the end means a truncated file."""

    def __init__(self, file: BinaryIO, path: Path, texts: bool) -> None:
        self._file, self.path, self._texts = file, path, texts
        self.size = os.fstat(file.fileno()).st_size
        self._page, self._begin, self._next = b"", 0, 0  # what was read, from where; the next byte

    @property
    def at(self) -> int:
        """Where in the file the next value is."""
        return self._begin + self._next

    def take(self, count: int) -> bytes:
        self._have(count)
        taken = self._page[self._next : self._next + count]
        self._next += count
        return taken

    def _have(self, count: int) -> None:
        """Read until the next `count` bytes are there."""
        missing = self._next + count - len(self._page)
        if missing <= 0:
            return
        if self.at + count > self.size:
            raise self.truncated(self.at + count)
        more = self._file.read(max(missing, _PAGE))
        if len(more) < missing:  # cut since it was opened
            raise self.truncated(self.at + count)
        self._begin, self._page = self.at, self._page[self._next :] + more
        self._next = 0

    def check_magic(self) -> None:
        if self.size >= len(MAGIC) and self.take(len(MAGIC)) == MAGIC:
            return
        self._file.seek(0)
        if self._file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelError(
                f"{self.path} is a Git LFS pointer, not the file that it stands for. Fetch that "
                "with `git lfs pull`, or download it from the model's page."
            )
        raise ModelError(
            f"{self.path} is not a GGUF file (it doesn't begin with 'GGUF'). "
            "Download it again, or give another file."
        )

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
            return self._strings(count)
        if item not in _SCALARS:
            raise self.damaged(f"an array of unknown type {item}")
        size = struct.calcsize("<" + _SCALARS[item])
        raw = self.take(count * size)
        return list(struct.unpack(f"<{count}{_SCALARS[item]}", raw))

    def _strings(self, count: int) -> list[str]:
        """An array of texts. A vocabulary has 100,000 and more, so this loop calls nothing."""
        if count * _LENGTH.size > self.size:
            raise self.truncated(self.at + count * _LENGTH.size)
        found: list[bytes] = []
        left, wanted = count, self._texts or count <= SHORT_ARRAY
        while left:
            self._have(_LENGTH.size)
            page, at, end = self._page, self._next, len(self._page)
            for _ in range(left):
                begin = at + 8
                if begin > end:
                    break
                stop = begin + _LENGTH.unpack_from(page, at)[0]
                if stop > end:
                    break
                if wanted:
                    found.append(page[begin:stop])
                at = stop
                left -= 1
            if at > self._next:
                self._next = at
            else:  # not even one was there in full
                self._have(_LENGTH.size + _LENGTH.unpack_from(page, at)[0])
        try:
            return [text.decode() for text in found]
        except UnicodeDecodeError as error:
            raise self.damaged("a text in it is not UTF-8") from error

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is a damaged GGUF file: {what}. Download it again.")

    def truncated(self, needed: int, tensor: str | None = None) -> ModelError:
        where = f" up to the end of the tensor {tensor!r}" if tensor else ""
        return ModelError(
            f"{self.path} is truncated: it has {self.size:,} bytes and promises "
            f"{needed:,}{where}. The download was probably cut off; download it again."
        )


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
