"""Packed matrices: their values against the format's own package, their products on every level
against the scalar one to the bit, and against products in float64.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, dequantize
from gguf import GGMLQuantizationType as Type

from kernel_models import SCALAR, Floats, kernel, levels, pool

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

# type → where a block has float16 numbers.
HALVES = {
    Type.Q4_0: (0,),
    Type.Q4_1: (0, 2),
    Type.Q5_0: (0,),
    Type.Q5_1: (0, 2),
    Type.Q8_0: (0,),
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,),
    Type.IQ1_S: (0,),
    Type.IQ1_M: (),
    Type.IQ2_XXS: (0,),
    Type.IQ2_XS: (0,),
    Type.IQ2_S: (0,),
    Type.IQ3_XXS: (0,),
    Type.IQ3_S: (0,),
    Type.TQ1_0: (52,),
    Type.TQ2_0: (64,),
    Type.MXFP4: (),
}
EXACT = list(HALVES)
# Whose values are kept in 4 bits each, whatever the file's codebooks take.
TABLES = [kind for kind in HALVES if kind.name.startswith(("IQ1", "IQ2", "IQ3", "TQ"))]
ROUNDED = [Type.F32, Type.F16, Type.BF16]
# Float16: 0 and -0, the least and the largest subnormal, the least normal, 1, -1, the largest.
EXTREMES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF]


def blocks(kind: Type, rows: int, columns: int, seed: int, extremes: bool = False) -> Bytes:
    """Random rows of a file's bytes, with scales that can be."""
    random = np.random.default_rng(seed)
    inputs, size = GGML_QUANT_SIZES[kind]
    if kind in ROUNDED:
        return written(kind, random.normal(0, 0.05, (rows, columns)).astype(np.float32))
    count = columns // inputs
    made = random.integers(0, 256, (rows, count, size), dtype=np.uint8)
    for at in HALVES[kind]:
        scales = random.normal(0, 0.01, (rows, count)).astype(np.float16).view(np.uint16)
        if extremes:
            chosen = random.choice(np.array(EXTREMES, np.uint16), (rows, count))
            scales = np.where(random.random((rows, count)) < 0.5, chosen, scales)
        made[:, :, at : at + 2] = scales.view(np.uint8).reshape(rows, count, 2)
    if kind == Type.MXFP4:
        exponents = random.integers(0, 201, (rows, count)) if extremes else 120
        made[:, :, 0] = exponents
    if kind == Type.IQ1_M:  # a float16 in the highest bits of four words
        scales = random.normal(0, 0.01, (rows, count)).astype(np.float16).view(np.uint16)
        for i in range(4):
            made[:, :, 49 + 2 * i] = (made[:, :, 49 + 2 * i] & 15) | (scales >> (4 * i) & 15) << 4
    return made.reshape(rows, -1)


def written(kind: Type, values: Floats) -> Bytes:
    """Floats as a file has them."""
    if kind == Type.F16:
        return values.astype(np.float16).view(np.uint8)
    if kind == Type.BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.view(np.uint8)


def read(kind: Type, raw: Bytes) -> Floats:
    """The values that the format's package reads."""
    if kind == Type.F32:
        return raw.view(np.float32)
    if kind == Type.F16:
        return raw.view(np.float16).astype(np.float32)
    return dequantize(raw, kind)


@contextmanager
def packed(
    kind: int,
    raw: Bytes,
    columns: int,
    *,
    order: list[int] | None = None,
    threads: int = 2,
    stride: int | None = None,
) -> Iterator[int]:
    """A packed matrix. Raises: ValueError with what the kernel says when it refuses."""
    error = ctypes.create_string_buffer(512)
    indices = None if order is None else (ctypes.c_int32 * len(order))(*order)
    with pool(threads) as threads_of:
        matrix = kernel().mst_matrix_pack(
            *(threads_of, int(kind), len(raw) if order is None else len(order), columns),
            *(raw.ctypes.data, raw.strides[0] if stride is None else stride),
            *(indices, error, len(error)),
        )
    if not matrix:
        raise ValueError(error.value.decode())
    try:
        yield matrix
    finally:
        kernel().mst_matrix_free(matrix)


def pointer(values: Floats) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def values(matrix: int, rows: int, columns: int) -> Floats:
    out = np.empty((rows, columns), np.float32)
    assert kernel().mst_matrix_unpack(matrix, 0, rows, pointer(out)) == 0
    return out


def product(level: int, matrix: int, x: Floats, rows: int, exact: bool = False) -> Floats:
    out = np.full((len(x), rows), np.nan, np.float32)
    with pool(2) as threads:
        done = kernel().mst_matrix_multiply(
            threads, level, matrix, pointer(x), len(x), pointer(out), exact
        )
    assert done == 0
    return out


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_values_are_those_of_the_file(kind: Type) -> None:
    for seed, (rows, columns) in enumerate([(1, 256), (16, 512), (37, 768)]):
        for extremes in (False, True):
            raw = blocks(kind, rows, columns, seed, extremes)
            with packed(kind, raw, columns) as matrix:
                found = values(matrix, rows, columns)
            np.testing.assert_array_equal(found, read(kind, raw).reshape(rows, columns))
    assert kernel().mst_type_is_exact(int(kind)) == 1


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0])
def test_rows_need_not_be_of_256(kind: Type) -> None:
    raw = blocks(kind, 5, 352, 0)
    with packed(kind, raw, 352) as matrix:
        np.testing.assert_array_equal(values(matrix, 5, 352), read(kind, raw).reshape(5, 352))


@pytest.mark.parametrize("kind", ROUNDED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [32, 100, 256, 1])
def test_rounded_values_are_near_those_of_the_file(kind: Type, columns: int) -> None:
    random = np.random.default_rng(columns)
    scales = 10.0 ** random.uniform(-4, 3, (19, 1))
    raw = written(kind, (random.normal(0, 1, (19, columns)) * scales).astype(np.float32))
    expected = read(kind, raw).reshape(19, columns)
    with packed(kind, raw, columns) as matrix:
        found = values(matrix, 19, columns)
    for first in range(0, columns, 32):
        part = slice(first, first + 32)
        largest = np.abs(expected[:, part]).max(axis=1, keepdims=True)
        # Half of a step of 1/127, and the scale's own rounding to float16.
        allowed = largest * (0.5 / 127 + 0.0006) + 2.0**-18
        assert (np.abs(found[:, part] - expected[:, part]) <= allowed).all()
    assert kernel().mst_type_is_exact(int(kind)) == 0


def test_rows_of_zeros_and_of_the_least_numbers_stay_what_they_are() -> None:
    raw = written(Type.F32, np.zeros((3, 64), np.float32))
    with packed(Type.F32, raw, 64) as matrix:
        assert not values(matrix, 3, 64).any()
    raw = written(Type.F32, np.full((3, 64), 1e-38, np.float32))
    with packed(Type.F32, raw, 64) as matrix:
        assert np.abs(values(matrix, 3, 64)).max() <= 1e-7


@pytest.mark.parametrize("bad", [0x7C00, 0xFC00, 0x7E01])
@pytest.mark.parametrize(
    ("kind", "at"), [(kind, at) for kind, places in HALVES.items() for at in places]
)
def test_a_scale_that_is_not_finite_is_refused(kind: Type, at: int, bad: int) -> None:
    raw = blocks(kind, 20, 512, 0)
    size = GGML_QUANT_SIZES[kind][1]
    raw[17, size + at : size + at + 2] = np.array([bad], np.uint16).view(np.uint8)
    with pytest.raises(ValueError, match="not a finite number"), packed(kind, raw, 512):
        pass


@pytest.mark.parametrize("kind", ROUNDED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(kind: Type, bad: float) -> None:
    numbers = np.ones((3, 40), np.float32)
    numbers[2, 39] = bad
    with pytest.raises(ValueError, match="not a finite"), packed(kind, written(kind, numbers), 40):
        pass


def test_what_can_not_be_a_weight_is_refused() -> None:
    huge = written(Type.F32, np.full((1, 32), 1e9, np.float32))
    with pytest.raises(ValueError, match="beyond 8 million"), packed(Type.F32, huge, 32):
        pass
    exponents = blocks(Type.MXFP4, 1, 32, 0)
    exponents[0, 0] = 255
    with pytest.raises(ValueError, match="not a finite"), packed(Type.MXFP4, exponents, 32):
        pass


@pytest.mark.parametrize(
    ("kind", "columns", "changed", "said"),
    [
        (99, 256, {}, "type 99"),
        (Type.Q8_1, 256, {}, "type 9"),
        (Type.Q4_0, 250, {}, "Q4_0"),
        (Type.Q4_K, 128, {}, "Q4_K"),
        (Type.Q4_0, 0, {}, "0"),
        (Type.Q4_0, -32, {}, "-32"),
        (Type.Q4_0, 256, {"stride": 100}, "144 bytes"),
        (Type.Q4_0, 256, {"stride": -144}, "144 bytes"),
        (Type.Q4_0, 256, {"order": [0, -1]}, "144 bytes"),
        (Type.F32, 2**40, {}, "1099511627776"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    kind: int, columns: int, changed: dict[str, Any], said: str
) -> None:
    raw = blocks(Type.Q4_0, 4, 256, 0)
    with pytest.raises(ValueError, match=said), packed(kind, raw, columns, **changed):
        pass
    if not changed:
        assert kernel().mst_packed_bytes(int(kind), 4, columns) < 0


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_packed_weights_are_hardly_larger_than_the_file(kind: Type) -> None:
    raw = blocks(kind, 64, 2048, 0)
    with packed(kind, raw, 2048) as matrix:
        size = kernel().mst_matrix_bytes(matrix)
    assert size == kernel().mst_packed_bytes(int(kind), 64, 2048)
    more = {Type.Q3_K: 1.04, Type.IQ4_XS: 1.015}.get(kind, 1.0)
    assert size <= (146 / 256 * 64 * 2048 if kind in TABLES else raw.nbytes * more)


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q6_K, Type.BF16], ids=lambda kind: kind.name)
def test_rows_can_be_packed_in_another_order_and_from_between_others(kind: Type) -> None:
    raw = blocks(kind, 40, 512, 3)
    order = [39, 0, 7, 7, 21]
    expected = read(kind, raw).reshape(40, 512)
    with packed(kind, raw, 512) as plain, packed(kind, raw, 512, order=order) as ordered:
        whole = values(plain, 40, 512)
        np.testing.assert_array_equal(values(ordered, 5, 512), whole[order])
    with packed(kind, raw[::2], 512) as every_second:
        np.testing.assert_array_equal(values(every_second, 20, 512), whole[::2])
    assert np.abs(whole - expected).max() < 0.01


def test_a_digest_names_the_content() -> None:
    def digest(raw: Bytes, columns: int = 512, kind: Type = Type.Q4_0, threads: int = 2) -> int:
        with packed(kind, raw, columns, threads=threads) as matrix:
            return int(kernel().mst_matrix_digest(matrix))

    raw = blocks(Type.Q4_0, 50, 512, 0)
    other = raw.copy()
    other[49, -1] ^= 0x10
    swapped = raw.copy()
    swapped[[0, 16]] = raw[[16, 0]]
    assert digest(raw) == digest(raw, threads=1) == digest(raw.copy())
    found = [
        digest(raw),
        digest(other),
        digest(swapped),
        digest(raw[:48]),
        digest(raw[:, :144], 256),
    ]
    found.append(digest(raw, kind=Type.IQ4_NL))
    assert len(set(found)) == len(found)


def test_values_outside_of_the_matrix_are_refused() -> None:
    with packed(Type.Q8_0, blocks(Type.Q8_0, 4, 64, 0), 64) as matrix:
        out = np.empty((8, 64), np.float32)
        for first, rows in ((-1, 1), (0, 5), (4, 1), (5, 0), (2**62, 2**62), (0, -1)):
            assert kernel().mst_matrix_unpack(matrix, first, rows, pointer(out)) < 0
        assert kernel().mst_matrix_unpack(matrix, 4, 0, pointer(out)) == 0


SHAPES = [(1, 256), (16, 256), (37, 512), (70, 1280), (130, 2304)]
COUNTS = [*range(1, 19), 24, 31, 32, 33, 40, 48, 49, 65]


@pytest.mark.parametrize("kind", [*EXACT, *ROUNDED], ids=lambda kind: kind.name)
def test_every_level_gives_the_same_bits(kind: Type) -> None:
    random = np.random.default_rng(int(kind))
    for rows, columns in SHAPES:
        with packed(kind, blocks(kind, rows, columns, rows), columns) as matrix:
            for count in COUNTS if rows == 37 else (1, 6, 16, 35, 50):
                x = random.normal(0, 1, (count, columns)).astype(np.float32)
                x[count // 2, 32:64] = 0
                expected = product(SCALAR, matrix, x, rows)
                for level in levels():
                    found = product(level, matrix, x, rows)
                    np.testing.assert_array_equal(
                        found.view(np.uint32),
                        expected.view(np.uint32),
                        f"{level}: {count} x {rows}",
                    )


@pytest.mark.parametrize("columns", [32, 64, 96, 224, 1056, 2080])
@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_1, Type.Q5_1, Type.Q8_0])
def test_widths_that_are_not_of_256_give_the_same_bits(kind: Type, columns: int) -> None:
    x = np.random.default_rng(columns).normal(0, 1, (50, columns)).astype(np.float32)
    with packed(kind, blocks(kind, 21, columns, 0), columns) as matrix:
        for count in (1, 3, 7, 8, 35, 50):
            expected = product(SCALAR, matrix, x[:count], 21)
            for level in levels():
                np.testing.assert_array_equal(product(level, matrix, x[:count], 21), expected)


@pytest.mark.parametrize("columns", [1, 31, 33, 100])
def test_widths_that_are_not_of_32_are_filled_up_with_zeros(columns: int) -> None:
    random = np.random.default_rng(columns)
    raw = written(Type.F32, random.normal(0, 1, (18, columns)).astype(np.float32))
    x = random.normal(0, 1, (5, columns)).astype(np.float32)
    with packed(Type.F32, raw, columns) as matrix:
        expected = product(SCALAR, matrix, x, 18)
        weights = values(matrix, 18, columns).astype(np.float64)
        for level in levels():
            np.testing.assert_array_equal(product(level, matrix, x, 18), expected)
    np.testing.assert_allclose(expected, x @ weights.T, atol=0.03 * columns**0.5)


@pytest.mark.parametrize("kind", [*EXACT, *ROUNDED], ids=lambda kind: kind.name)
def test_a_product_is_off_by_the_rounding_of_activations_alone(kind: Type) -> None:
    random = np.random.default_rng(int(kind))
    rows, columns = 24, 1024
    x = random.normal(0, 1, (6, columns)).astype(np.float32)
    x[1] *= 1e-4
    x[2] *= 1e6
    with packed(kind, blocks(kind, rows, columns, 1), columns) as matrix:
        weights = values(matrix, rows, columns).astype(np.float64)
        found = product(SCALAR, matrix, x, rows)
        exact = product(SCALAR, matrix, x, rows, exact=True)
    largest = np.abs(x.reshape(6, -1, 32)).max(axis=2)
    steps = np.repeat(largest / 127, 32, axis=1)
    magnitude = np.abs(x) @ np.abs(weights).T
    allowed = 0.5001 * steps @ np.abs(weights).T + 1e-5 * magnitude
    expected = x.astype(np.float64) @ weights.T
    assert (np.abs(found - expected) <= allowed).all()
    assert (np.abs(exact - expected) <= 1e-6 * magnitude).all()


@pytest.mark.parametrize("kind", [*EXACT, *ROUNDED], ids=lambda kind: kind.name)
def test_the_largest_value_of_a_row_is_multiplied_in_float32(kind: Type) -> None:
    """Of rows that have nothing else, wherever it is: results are its weights, rounded once."""
    x = np.zeros((256, 256), np.float32)
    np.fill_diagonal(x, np.linspace(-3, 2, 256, dtype=np.float32))
    with packed(kind, blocks(kind, 37, 256, 2), 256) as matrix:
        weights = values(matrix, 37, 256)
        for level in (SCALAR, *levels()):
            for rows in (x, x[100:101], x[250:]):
                np.testing.assert_array_equal(
                    product(level, matrix, rows, 37), rows @ weights.T, str(level)
                )


@pytest.mark.parametrize("columns", [33, 256])
@pytest.mark.parametrize("at", [0, 13, 32])
def test_an_outlier_does_not_coarsen_its_neighbours(columns: int, at: int) -> None:
    random = np.random.default_rng(at)
    x = random.normal(0, 1, (40, columns)).astype(np.float32)
    x[:, at] = 1000
    plain = x.copy()
    plain[:, at] = 0
    raw = written(Type.F32, random.normal(0, 1, (16, columns)).astype(np.float32))
    with packed(Type.F32, raw, columns) as matrix:
        weights = values(matrix, 16, columns).astype(np.float64)
        for level in (SCALAR, *levels()):
            found = product(level, matrix, x, 16) - 1000 * weights[:, at]
            expected = plain.astype(np.float64) @ weights.T
            assert np.abs(found - expected).max() < 0.05 * columns**0.5  # 5 standard deviations


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_are_not_hidden(bad: float) -> None:
    x = np.ones((3, 64), np.float32)
    x[1, 40] = bad
    with packed(Type.Q8_0, blocks(Type.Q8_0, 20, 64, 0), 64) as matrix:
        for level in (SCALAR, *levels()):
            found = product(level, matrix, x, 20)
            assert np.isnan(found[1]).all()
            assert np.isfinite(found[[0, 2]]).all()


def test_exact_products_are_the_scalar_levels_alone() -> None:
    x = np.ones((1, 64), np.float32)
    out = np.empty((1, 4), np.float32)
    with packed(Type.Q8_0, blocks(Type.Q8_0, 4, 64, 0), 64) as matrix, pool(1) as threads:
        for level, exact in ((levels()[0], 1), (17, 0), (-1, 0)):
            done = kernel().mst_matrix_multiply(
                threads, level, matrix, pointer(x), 1, pointer(out), exact
            )
            assert done < 0
