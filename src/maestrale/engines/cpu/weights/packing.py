"""Tensors → the kernel's layout, one at a time, by the kernel itself."""

from __future__ import annotations

import ctypes
import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maestrale.engines.cpu.library import ERROR_SIZE, Library, ints, model_error
from maestrale.engines.cpu.weights.mapped import MappedTensors
from maestrale.engines.cpu.weights.roles import Rows, Vector
from maestrale.errors import ModelError
from maestrale.models.tensor_info import GGML_NUMBERS, GGML_TYPES, TensorInfo

_MXFP4 = GGML_NUMBERS["MXFP4"]
logger = logging.getLogger(__name__)


class Packer:
    """Packs matrices with the threads of a pool, and remembers what they are."""

    def __init__(self, library: Library, pool: int, mapped: MappedTensors) -> None:
        self._library, self._pool, self._mapped = library, pool, mapped
        self.handles: list[int] = []
        self.digests: list[int] = []
        self.bytes = 0
        self.largest = (0, 0, 0)  # of the matrices: its handle, rows and columns
        self._rounded: set[str] = set()

    def matrix(self, rows: Rows) -> int:
        """The kernel's matrix. Raises: ModelError."""
        tensor = self._mapped.tensors[rows.tensor]
        kind, data, stride = self._data(tensor, rows)
        order = interleaved_order(rows.rows, rows.heads) if rows.heads else None
        error = ctypes.create_string_buffer(ERROR_SIZE)
        handle = self._library.mst_matrix_pack(
            self._pool,
            kind,
            rows.rows,
            rows.columns,
            data.ctypes.data,
            stride,
            None if order is None else order.ctypes.data_as(ints),
            error,
            ERROR_SIZE,
        )
        if not handle:
            failed = model_error(
                error, f"{tensor.file}: the tensor {tensor.name!r} can't be packed"
            )
            raise ModelError(f"{failed}. Download it again, or get the model from another place.")
        self.handles.append(handle)
        self.digests.append(self._library.mst_matrix_digest(handle))
        self.bytes += self._library.mst_matrix_bytes(handle)
        if rows.rows * rows.columns > math.prod(self.largest[1:]):
            self.largest = (int(handle), rows.rows, rows.columns)
        self._say_rounded(kind)
        return int(handle)

    def is_plain(self, tensor: str) -> bool:
        """Whether a tensor isn't quantised, so that it can be had as a vector."""
        return self._mapped.is_plain(self._mapped.tensors[tensor])

    def vector(self, vector: Vector) -> NDArray[np.float32]:
        """The values of a vector. Raises: ModelError for such as no model has."""
        tensor = self._mapped.tensors[vector.tensor]
        values = self._mapped.values(tensor).reshape(-1)[vector.first :: vector.step]
        values = np.ascontiguousarray(values[: vector.size])
        if len(values) != vector.size or not np.isfinite(values).all():
            raise ModelError(
                f"{tensor.file}: the tensor {tensor.name!r} has values that are no numbers, or too "
                "few. The file is damaged; download it again."
            )
        if vector.heads:
            values = values[interleaved_order(vector.size, vector.heads)]
        return values + np.float32(vector.add) if vector.add else values.copy()

    def free(self) -> None:
        """Give the packed matrices back."""
        for handle in self.handles:
            self._library.mst_matrix_free(handle)
        self.handles.clear()

    def _data(self, tensor: TensorInfo, rows: Rows) -> tuple[int, NDArray[Any], int]:
        """ggml's type, the bytes from the matrix's first row on, bytes from row to row."""
        raw = self._mapped.bytes_of(tensor)
        if rows.scales:
            scales = self._mapped.bytes_of(self._mapped.tensors[rows.scales])
            blocks = mxfp4_rows(raw, scales, rows)
            return _MXFP4, blocks, blocks.shape[1]
        number = GGML_NUMBERS[tensor.type]
        kind = GGML_TYPES[number]
        if rows.transposed:
            turned = _transposed(raw.reshape(-1, kind.size), tensor, rows)
            return number, turned, rows.columns * kind.size
        row = rows.columns // kind.elements * kind.size
        end = rows.first + (rows.rows - 1) * rows.step + 1
        return number, raw[rows.first * row : end * row], rows.step * row

    def _say_rounded(self, number: int) -> None:
        kind = GGML_TYPES[number].name
        if kind in self._rounded or self._library.mst_type_is_exact(number):
            return
        self._rounded.add(kind)
        logger.info("Weights of the type %s are rounded to 8 bits in groups of 32.", kind)


def interleaved_order(rows: int, heads: int) -> NDArray[np.int32]:
    """For heads whose halves are interleaved: which row comes where to have them in halves."""
    order = np.arange(rows, dtype=np.int32).reshape(heads, -1, 2)
    return np.ascontiguousarray(order.swapaxes(1, 2)).reshape(-1)


def mxfp4_rows(
    blocks: NDArray[np.uint8], scales: NDArray[np.uint8], rows: Rows
) -> NDArray[np.uint8]:
    """gpt-oss's MXFP4 of safetensors as ggml has it: a scale and 16 bytes for 32 values.

    In safetensors a byte holds two values that follow each other, in ggml two that are 16 apart.
    """
    count = rows.columns // 32
    picked = slice(rows.first, rows.first + (rows.rows - 1) * rows.step + 1, rows.step)
    values = blocks.reshape(-1, count, 16)[picked]
    split = np.empty((rows.rows, count, 32), np.uint8)
    split[..., 0::2], split[..., 1::2] = values & 15, values >> 4
    packed = np.empty((rows.rows, count, 17), np.uint8)
    packed[..., 0] = scales.reshape(-1, count)[picked]
    packed[..., 1:] = split[..., :16] | split[..., 16:] << 4
    return packed.reshape(rows.rows, count * 17)


def _transposed(raw: NDArray[np.uint8], tensor: TensorInfo, rows: Rows) -> NDArray[np.uint8]:
    """The matrix of an expert that lies with its rows as columns."""
    width = raw.shape[1]
    columns, length = tensor.shape[-2:]
    expert, first = divmod(rows.first, length)
    one = raw.reshape(math.prod(tensor.shape[:-2]), columns, length, width)[expert]
    picked = one[:, first : first + (rows.rows - 1) * rows.step + 1 : rows.step]
    return np.ascontiguousarray(picked.swapaxes(0, 1)).reshape(rows.rows, -1)
