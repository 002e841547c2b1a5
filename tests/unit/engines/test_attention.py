"""Attention in our own operation: what numpy computes, and the same bits however it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13
from openvino.utils.node_factory import NodeFactory

from maestrale.engines.openvino.kv_cache import BLOCK_SIZE
from maestrale.engines.openvino.weights.chain import NONE, OPERATION, Chain, Heads, Stage
from maestrale.engines.openvino.weights.decoder import Decoder
from maestrale.engines.openvino.weights.packing import GROUP, Grouped, packed

Float = NDArray[np.float32]

DRAW = np.random.default_rng(8)
WIDTH = 64  # of the model
HEADS = Heads(queries=4, kept=2, width=32, scale=0.2)
QUERIES, KEPT = HEADS.queries * HEADS.width, HEADS.kept * HEADS.width
BLOCKS = 90


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


def tokens(count: int) -> Float:
    return DRAW.standard_normal((count, WIDTH)).astype(np.float32)


Piece = tuple[Float, int, int, list[int]]  # a sequence's tokens, first, end, its blocks


class Model:
    """One layer's attention, without rotary embedding, and the product behind it."""

    def __init__(self, kernel: Path, threads: int = 2) -> None:
        factory = NodeFactory()
        factory.add_extension(kernel)
        parts = (0, 0, 0, QUERIES, 0, QUERIES + KEPT)
        stages = [
            Stage(QUERIES + 2 * KEPT, WIDTH, 4),
            Stage(WIDTH, QUERIES, 4, before="attention", source=NONE, parts=parts),
        ]
        chain = Chain(stages, [(0, QUERIES + 2 * KEPT), (1, WIDTH)], [0, 0], HEADS)
        x = opset13.parameter([-1, 1, WIDTH], ov.Type.f32)
        integers = [opset13.parameter([-1], ov.Type.i32) for _ in range(6)]
        constants = [opset13.constant(packed([one])) for one in (PROJECTED, OUT)]
        node = factory.create(OPERATION, [x, *integers, *constants], chain.attributes())
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        outputs = [opset13.result(output) for output in node.outputs()]
        model = ov.Model(outputs, [x, *integers], "attention")
        self._compiled = ov.Core().compile_model(model, "CPU", options)
        # Bits that are no number, as floats of either size: nothing of them may be seen.
        self.cache = np.full((BLOCKS, Decoder(model, 1, HEADS).block_bytes), 0xFF, np.uint8)

    def __call__(self, *pieces: Piece, rows: Sequence[int] | None = None) -> tuple[Float, Float]:
        """(queries, keys and values; what comes out, of the chosen `rows`)."""
        counts = [end - first for _, first, end, _ in pieces]
        blocks = [known[: -(-end // BLOCK_SIZE)] for _, _, end, known in pieces]
        address = np.array([self.cache.ctypes.data], np.int64)
        found = self._compiled([
            np.concatenate([x[first:end] for x, first, end, _ in pieces])[:, None],
            address.view(np.int32),
            np.array([first for _, first, _, _ in pieces], np.int32),
            np.cumsum([0, *counts]).astype(np.int32),
            np.concatenate(blocks).astype(np.int32),
            np.cumsum([0, *map(len, blocks)]).astype(np.int32),
            np.array(range(sum(counts)) if rows is None else rows, np.int32),
        ])  # fmt: skip
        return np.array(found[0])[:, 0], np.array(found[1])[:, 0]

    def in_chunks(self, x: Float, ends: Sequence[int]) -> Float:
        """What comes out for a sequence that is computed up to each of `ends`."""
        known = blocks_for(len(x))
        begins = [0, *ends]
        return np.concatenate(
            [self((x, begin, end, known))[1] for begin, end in zip(begins, ends, strict=False)]
        )


def blocks_for(length: int, of: Sequence[int] = range(BLOCKS)) -> list[int]:
    """In no order."""
    return [int(block) for block in DRAW.permutation(of)[: -(-length // BLOCK_SIZE)]]


@pytest.fixture(scope="module")
def model(kernel: Path) -> Model:
    return Model(kernel)


def expected(projected: Float) -> Float:
    """Of each token of a sequence, in float64, from its queries, keys and values."""
    length = len(projected)
    parts = np.split(projected.astype(np.float64), [QUERIES, QUERIES + KEPT], axis=1)
    queries, keys, values = (part.reshape(length, -1, HEADS.width) for part in parts)
    hidden = np.triu(np.full((length, length), -np.inf), 1)
    attended = np.empty_like(queries)
    for head in range(HEADS.queries):
        kept = head * HEADS.kept // HEADS.queries
        scores = queries[:, head] @ keys[:, kept].T * HEADS.scale + hidden
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        attended[:, head] = odds @ values[:, kept] / odds.sum(axis=1, keepdims=True)
    result: Float = attended.reshape(length, -1) @ in_floats(OUT).T
    return result


@pytest.mark.parametrize("length", [1, 2, 7, 8, 31, 32, 33, 255, 256, 257, 600, 2500])
def test_a_token_attends_to_itself_and_all_before_it(model: Model, length: int) -> None:
    projected, found = model((tokens(length), 0, length, blocks_for(length)))
    wanted = expected(projected)
    # Queries, keys, values, weights and what comes out of them are rounded to 8 bits.
    assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()
    assert np.abs(found - wanted).mean() < 0.02 * np.abs(wanted).mean()


def test_the_bits_are_the_same_however_a_sequence_is_cut(model: Model) -> None:
    x = tokens(300)
    whole = model.in_chunks(x, [300])
    for ends in (range(1, 301), [1, 2, 300], [5, 37, 38, 256, 300], [8, 264, 300]):
        assert model.in_chunks(x, ends).tobytes() == whole.tobytes()


def test_the_bits_are_the_same_in_any_company_and_with_any_threads(
    model: Model, kernel: Path, without_vnni: Path
) -> None:
    x, y = tokens(270), tokens(90)
    mine, others = blocks_for(270, range(30)), blocks_for(90, range(30, 90))
    alone = model((x, 0, 270, mine))[1]
    for other in (model, Model(kernel, threads=1), Model(without_vnni)):
        other((y, 0, 40, others))
        first = other((x, 0, 100, mine), (y, 40, 41, others))[1]
        rest = other((y, 41, 90, others), (x, 100, 270, mine))[1]
        assert first[:100].tobytes() == alone[:100].tobytes()
        assert rest[49:].tobytes() == alone[100:].tobytes()


def test_guessed_tokens_see_those_before_them(model: Model) -> None:
    """They are sequences of one token over the same blocks."""
    x = tokens(34)
    wanted = model((x, 0, 34, blocks_for(34)))[1]
    known = blocks_for(34)
    model((x, 0, 31, known))
    found = model(*((x, at, at + 1, known) for at in range(31, 34)))[1]
    assert found.tobytes() == wanted[31:].tobytes()
    wrong = np.concatenate([x[:32], tokens(2)])  # and may be computed over again
    model(*((wrong, at, at + 1, known) for at in (32, 33)))
    assert model((x, 32, 34, known))[1].tobytes() == wanted[32:].tobytes()


def test_only_the_rows_that_are_asked_for_go_on(model: Model) -> None:
    x, known = tokens(50), blocks_for(50)
    wanted = model((x, 0, 50, known))[1]
    assert model((x, 0, 50, known), rows=[49, 3])[1].tobytes() == wanted[[49, 3]].tobytes()
    known = blocks_for(50)
    model((x, 0, 40, known), rows=[-1])  # none: but the cache is filled
    assert model((x, 40, 50, known))[1].tobytes() == wanted[40:].tobytes()
