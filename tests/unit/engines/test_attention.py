"""Attention in our own operation: what numpy computes, and the same bits in any company."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13
from openvino.utils.node_factory import NodeFactory

from maestrale.engines.openvino.kv_cache import BLOCK_SIZE
from maestrale.engines.openvino.weights.chain import NONE, OPERATION, Chain, Heads, Stage
from maestrale.engines.openvino.weights.packing import GROUP, Grouped, packed

Float = NDArray[np.float32]

DRAW = np.random.default_rng(8)
WIDTH = 64  # of the model
HEADS = Heads(queries=4, kept=2, width=32, scale=0.2)
QUERIES, KEPT = HEADS.queries * HEADS.width, HEADS.kept * HEADS.width
BLOCKS = 40


def weights(outputs: int, inputs: int) -> Grouped:
    shape = (outputs, inputs // GROUP)
    return Grouped(
        bits=4,
        values=DRAW.integers(0, 16, (*shape, GROUP)).astype(np.uint8),
        zero_points=np.full(shape, 8, np.uint8),
        scales=DRAW.uniform(0.01, 0.03, shape).astype(np.float16),
    )


PROJECTED = weights(QUERIES + 2 * KEPT, WIDTH)
OUT = weights(WIDTH, QUERIES)


def in_floats(found: Grouped) -> Float:
    centred = found.values.astype(np.float32) - found.zero_points[..., None]
    scaled = centred * found.scales[..., None].astype(np.float32)
    return scaled.reshape(len(scaled), -1)


@dataclass
class Row:
    """The next token of a sequence: its activations, and what is known of those before it."""

    x: Float
    keys: Float  # [length, kept, width]
    values: Float


def row(length: int) -> Row:
    shape = (length, HEADS.kept, HEADS.width)
    x, keys, values = (DRAW.standard_normal(s) for s in (WIDTH, shape, shape))
    return Row(x.astype(np.float32), keys.astype(np.float32), values.astype(np.float32))


class Model:
    """One layer's attention, without rotary embedding, and the product behind it."""

    def __init__(self, kernel: Path, threads: int) -> None:
        factory = NodeFactory()
        factory.add_extension(kernel)
        parts = (0, 0, 0, QUERIES, 0, QUERIES + KEPT)
        stages = [
            Stage(QUERIES + 2 * KEPT, WIDTH, 4),
            Stage(WIDTH, QUERIES, 4, before="attention", source=NONE, parts=parts),
        ]
        chain = Chain(stages, [(0, QUERIES + 2 * KEPT), (1, WIDTH)], [0, 0], HEADS)
        x = opset13.parameter([-1, 1, WIDTH], ov.Type.f32)
        integers = [opset13.parameter([-1], ov.Type.i32) for _ in range(4)]
        constants = [opset13.constant(packed([one])) for one in (PROJECTED, OUT)]
        node = factory.create(OPERATION, [x, *integers, *constants], chain.attributes())
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        outputs = [opset13.result(output) for output in node.outputs()]
        self._compiled = ov.Core().compile_model(
            ov.Model(outputs, [x, *integers], "attention"), "CPU", options
        )
        # What no token is in: nothing of it may be seen.
        shape = (BLOCKS, HEADS.kept, BLOCK_SIZE, HEADS.width)
        self.keys, self.values = (np.full(shape, np.nan, np.float32) for _ in range(2))

    def __call__(self, *rows: Row) -> tuple[Float, Float]:
        """(queries, keys and values; what comes out) of each row, in blocks in no order."""
        free = iter(DRAW.permutation(BLOCKS))
        blocks: list[list[int]] = []
        for one in rows:
            blocks.append([int(next(free)) for _ in range(len(one.keys) // BLOCK_SIZE + 1)])
            self.fill(one, blocks[-1])
        found = self.compute([one.x for one in rows], [len(one.keys) for one in rows], blocks)
        for index, one in enumerate(rows):  # its own keys and values are in the cache now
            block, place = blocks[index][len(one.keys) // BLOCK_SIZE], len(one.keys) % BLOCK_SIZE
            kept = np.array([self.keys[block, :, place], self.values[block, :, place]])
            assert kept.tobytes() == found[0][index, QUERIES:].tobytes()
        return found

    def fill(self, one: Row, blocks: list[int]) -> None:
        """Put what is known of a sequence into these blocks of the cache."""
        for token in range(len(one.keys)):
            block, place = blocks[token // BLOCK_SIZE], token % BLOCK_SIZE
            self.keys[block, :, place] = one.keys[token]
            self.values[block, :, place] = one.values[token]

    def compute(
        self, x: list[Float], lengths: list[int], blocks: list[list[int]]
    ) -> tuple[Float, Float]:
        """Of each row: its activations, how many tokens are before it, and their blocks."""
        addresses = np.array([self.keys.ctypes.data, self.values.ctypes.data], np.int64)
        found = self._compiled([
            np.stack(x)[:, None],
            addresses.view(np.int32),
            np.array(lengths, np.int32),
            np.concatenate(blocks).astype(np.int32),
            np.cumsum([0, *map(len, blocks)]).astype(np.int32),
        ])  # fmt: skip
        return np.array(found[0])[:, 0], np.array(found[1])[:, 0]


@pytest.fixture(scope="module")
def model(kernel: Path) -> Model:
    return Model(kernel, threads=2)


def expected(one: Row, projected: Float) -> Float:
    queries, new_keys, new_values = np.split(projected, [QUERIES, QUERIES + KEPT])
    shape = (HEADS.kept, HEADS.width)
    keys = np.concatenate([one.keys, new_keys.reshape(1, *shape)]).astype(np.float64)
    values = np.concatenate([one.values, new_values.reshape(1, *shape)]).astype(np.float64)
    attended = []
    for head, query in enumerate(queries.reshape(HEADS.queries, HEADS.width)):
        kept = head * HEADS.kept // HEADS.queries
        scores = keys[:, kept] @ query * HEADS.scale
        odds = np.exp(scores - scores.max())
        attended.append(odds @ values[:, kept] / odds.sum())
    result: Float = in_floats(OUT) @ np.concatenate(attended)
    return result


LENGTHS = (0, 1, 6, 31, 32, 40, 255, 256, 257, 600)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_token_attends_to_all_before_it_and_to_itself(model: Model, length: int) -> None:
    one = row(length)
    (projected,), (found,) = model(one)
    wanted = expected(one, projected)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()  # activations of 8 bits


def test_the_bits_are_the_same_in_any_company_and_with_any_threads(
    model: Model, kernel: Path
) -> None:
    rows = [row(length) for length in LENGTHS[:-1]]
    alone = [model(one)[1][0].tobytes() for one in rows]
    for chosen in (rows, rows[::-1], rows[3:5], [*rows[6:], row(11)]):
        known = {id(one): bits for one, bits in zip(rows, alone, strict=True)}
        for one, found in zip(chosen, model(*chosen)[1], strict=True):
            assert known.get(id(one), found.tobytes()) == found.tobytes()
    single = Model(kernel, threads=1)
    assert [single(one)[1][0].tobytes() for one in rows] == alone


def test_rows_of_one_sequence_see_those_before_them(kernel: Path) -> None:
    """As guessed tokens do."""
    model = Model(kernel, threads=2)
    first, second = row(40), row(0)
    (projected,), (alone,) = model(first)
    keys, values = np.split(projected[QUERIES:].reshape(-1, HEADS.kept, HEADS.width), 2)
    later = Row(
        second.x, np.concatenate([first.keys, keys]), np.concatenate([first.values, values])
    )
    wanted = model(later)[1][0].tobytes()
    model.fill(first, [3, 7])
    _, found = model.compute([first.x, second.x], [40, 41], [[3, 7], [3, 7]])
    assert found[0].tobytes() == alone.tobytes()
    assert found[1].tobytes() == wanted
