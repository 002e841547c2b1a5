"""What this machine can do at most, measured on the spot, in a process of its own.

    python -m benchmarks.peers.limits KERNEL

Prints JSON: memory bandwidth (reading: the best of numpy's passes over memory and of our kernel's
product of one row), copying, matrix products in fp32 (numpy's) and in int8 (our kernel's, with
weights of 4 and of 8 bits).

Every array is far beyond any cache, and on huge pages: numpy asks for these by itself, as the
kernel does for its matrices.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maestrale.engines.cpu.library import ERROR_SIZE, Library, floats
from maestrale.engines.cpu.memory import packed_bytes
from maestrale.engines.cpu.model_files import open_model
from maestrale.models.tensor_info import GGML_NUMBERS, GGML_TYPES

MIB = 1 << 20
ROUNDS = 7
ROWS, INNER, OUTER = 512, 4096, 4096
LARGE = 131_072  # outputs of the product whose weights are read from memory
TYPES = ("Q4_0", "Q8_0")


def best_of(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The shortest of several runs, in seconds: what the machine can do."""
    work()
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def read_bandwidth() -> float:
    """Bytes a second that all cores together read from memory, with numpy."""
    cores = len(os.sched_getaffinity(0))
    parts = [np.ones(512 * MIB // 8 // cores, np.uint64) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        return parts[0].nbytes * cores / best_of(lambda: list(pool.map(np.max, parts)))


def copy_bandwidth() -> float:
    """Bytes a second read and written by one core's copy."""
    source = np.ones(256 * MIB // 4, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / best_of(lambda: np.copyto(target, source))


def fp32_product() -> float:
    """Operations a second of a large product in numpy."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((ROWS, INNER), np.float32)
    matrix = random.standard_normal((INNER, OUTER), np.float32)
    return 2 * ROWS * INNER * OUTER / best_of(lambda: rows @ matrix)


class KernelProduct:
    """A product in our kernel: `outputs` of INNER inputs each, with random weights of a type."""

    def __init__(self, library: Library, kind: str, outputs: int) -> None:
        self._library, self._outputs = library, outputs
        error = ctypes.create_string_buffer(ERROR_SIZE)
        number = GGML_NUMBERS[kind]
        block = GGML_TYPES[number]
        random = np.random.default_rng(0)
        raw = random.integers(0, 256, (outputs, INNER // block.elements, block.size), np.uint8)
        raw[..., :2] = np.array([0.01], "<f2").view(np.uint8)  # the scale of a block
        self._pool = library.mst_pool_open(len(os.sched_getaffinity(0)), error, ERROR_SIZE)
        self._matrix = self._pool and library.mst_matrix_pack(
            *(self._pool, number, outputs, INNER, raw.ctypes.data, raw.strides[0], None),
            *(error, ERROR_SIZE),
        )
        if not self._matrix:
            raise SystemExit(f"the kernel can't multiply: {error.value.decode()}")
        self.bytes = int(library.mst_matrix_bytes(self._matrix))

    def seconds(self, rows: int) -> float:
        """What it takes with so many rows of activations."""
        given = np.random.default_rng(1).standard_normal((rows, INNER), np.float32)
        result = np.empty((rows, self._outputs), np.float32)
        level = self._library.level(None)
        return best_of(
            lambda: self._library.mst_matrix_multiply(
                *(self._pool, level, self._matrix, given.ctypes.data_as(floats), rows),
                *(result.ctypes.data_as(floats), 0),
            )
        )

    def close(self) -> None:
        """Give its memory and its threads back."""
        self._library.mst_matrix_free(self._matrix)
        self._library.mst_pool_close(self._pool)


def kernel_speeds(library: Library) -> tuple[float, float]:
    """(bytes of weights a second with one row, operations a second with many)."""
    reading, products = [], []
    for kind in TYPES:
        large = KernelProduct(library, kind, LARGE)
        reading.append(large.bytes / large.seconds(1))
        large.close()
        small = KernelProduct(library, kind, OUTER)
        products.append(2 * ROWS * INNER * OUTER / small.seconds(ROWS))
        small.close()
    return max(reading), max(products)


@dataclass(frozen=True)
class ModelSize:
    """What a token needs of a model.

    `weights`: that it is multiplied with, of `head` in the output layer, which a prompt's last
    token alone needs; `bytes`: what these take in the kernel's layout. `everything`: what all
    weights take.
    """

    weights: int
    head: int
    bytes: int
    everything: int


def model_size(path: Path) -> ModelSize:
    """Of a mixture of experts the used ones count; of an embedding that is only looked up, none."""
    described = open_model(path)
    spec, roles, mapped = described.spec, described.roles, described.source.mapped
    head = roles.logits or roles.embedding
    experts = spec.experts
    weights, read, everything = 0.0, 0.0, 0
    for layer in roles.layers:
        for name, rows in layer.matrices():
            share = experts.used / experts.count if experts and name.startswith("expert_") else 1
            size = packed_bytes(mapped.tensors[rows.tensor].type, rows.rows, rows.columns)
            weights += share * rows.rows * rows.columns
            read += share * size
            everything += size
    for rows in {head, roles.embedding}:
        size = packed_bytes(mapped.tensors[rows.tensor].type, rows.rows, rows.columns)
        everything += size
        read += size if rows == head else 0
    mapped.close()
    of_head = head.rows * head.columns
    vectors = 4 * spec.vector_elements
    return ModelSize(round(weights) + of_head, of_head, round(read) + vectors, everything + vectors)


def main() -> None:
    reading, products = kernel_speeds(Library(Path(sys.argv[1])))
    found = {
        "read_bandwidth": max(reading, read_bandwidth()),
        "copy_bandwidth": copy_bandwidth(),
        "fp32_ops": fp32_product(),
        "int8_ops": products,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
