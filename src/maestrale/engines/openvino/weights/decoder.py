"""A whole model as one operation, from the embedding to the logits.

OpenVINO's own work around its operations took a third of a step with few rows, and its attention
in float32 up to half of a long prompt's. So paged attention is taken into the chain
(`attention.hpp`), over a KV cache of 8 bits a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13
from openvino.utils.node_factory import NodeFactory

from maestrale.engines.openvino.weights.chain import (
    GIVEN,
    NONE,
    OPERATION,
    Chain,
    Heads,
    Stage,
)

ATTENTION = "PagedAttentionExtension"
# What it takes, in this order: queries, keys, values; the caches; then the sequences.
CACHES = ("key_cache.{}", "value_cache.{}")
SEQUENCES = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
SCALE, MOST = 9, 12  # the inputs with the scale and the largest length; more say nothing
ADDRESSES = "cache_addresses"
LOGIT_ROWS = "logit_rows"
BLOCK_TOKENS = 32  # of the cache; the kernel's `kBlock`
GROUP_BYTES = 8 * (32 + 2 + 1)  # 32 inputs of 8 outputs, with a scale and a zero point of each
SAME = ("Reshape", "Transpose")  # of axes of size 1, where the values keep their order

_Key = tuple[str, int]


class _Unfit(Exception):
    """The model isn't what the operation computes."""


@dataclass(frozen=True)
class Decoder:
    """A model of one operation, with weights of the form a8 and paged attention.

    Inputs of `model`, for T tokens of S sequences: `input_ids`, `position_ids` int64 [T];
    `past_lens` [S], `subsequence_begins` [S+1], `block_indices`, `block_indices_begins` [S+1]
    int32, as paged attention takes them; `logit_rows` int32 [R], of T, or one below 0 for none;
    `cache_addresses` int32 [2 * layers]: where in memory each layer's cache begins, uint8 [blocks,
    `block_bytes`]. Output: `logits` float32 [R, 1, vocab].
    """

    model: Any
    layers: int
    heads: Heads

    @property
    def block_bytes(self) -> int:
        """Of a layer's keys and values of a block's tokens, laid out as `attention.hpp` says."""
        width = self.heads.width
        keys = BLOCK_TOKENS // 8 * width // 32 * GROUP_BYTES
        values = width // 8 * GROUP_BYTES + BLOCK_TOKENS * 4
        return self.heads.kept * (keys + values)


def decoder(paged: Any, extension: Path) -> Decoder | None:
    """`paged` as one operation; None where it is another kind of model."""
    try:
        return _Builder(paged.clone(), extension).build()
    except (_Unfit, RuntimeError):  # the latter: OpenVINO misses an input, or a name
        return None


@dataclass(frozen=True)
class _Made:
    """Where a chain's output is in the result of a stage."""

    stage: int
    first: int
    columns: int
    whole: bool
    rotated: int


class _Builder:
    """Puts the chains of a model behind each other, as far as nothing but attention is between."""

    def __init__(self, model: Any, extension: Path) -> None:
        self._model = model
        self._factory = NodeFactory()
        self._factory.add_extension(extension)
        self._stages: list[Stage] = []
        self._made: dict[_Key, _Made] = {}
        self._given: list[Any] = []  # the embedding, as often as stages take it
        self._angles: list[Any] = []
        self._constants: list[Any] = []
        self._heads = Heads()
        self._layers = 0

    def build(self) -> Decoder:
        """Raises: _Unfit."""
        nodes = self._model.get_ordered_ops()
        for node in nodes:
            if node.get_type_name() == OPERATION:
                self._add(node)
        layers = sum(node.get_type_name() == ATTENTION for node in nodes)
        logits = self._stage_of(self._model.output("logits").get_node().input_value(0))
        last = len(self._stages) - 1
        if logits != last or layers != self._layers or not layers:
            raise _Unfit
        chain = Chain([*self._stages], [(last, self._stages[last].columns)], [0], self._heads)
        known = {node.get_friendly_name(): node for node in self._model.get_parameters()}
        addresses, rows = (_parameter(name) for name in (ADDRESSES, LOGIT_ROWS))
        taken = [addresses, *(known[name] for name in SEQUENCES), rows]
        given = [*self._given, *self._angles, *(node.output(0) for node in taken)]
        node = self._factory.create(OPERATION, [*given, *self._constants], chain.attributes())
        node.output(0).get_tensor().set_names({"logits"})
        ids = [known[name] for name in ("input_ids", "position_ids")]
        model = ov.Model([opset13.result(node.output(0))], [*ids, *taken], "decoder")
        return Decoder(model, self._layers, self._heads)

    def _add(self, node: Any) -> None:
        """Continue with a chain whose inputs the stages so far make."""
        chain = Chain.of(node)
        inputs = node.input_values()
        given = iter(inputs[: chain.given])
        shift = len(self._stages)
        stages = [self._continued(stage, given, shift) for stage in chain.stages]
        angles = list(given)
        if self._angles and angles and [*map(_key, angles)] != [*map(_key, self._angles)]:
            raise _Unfit
        self._angles = self._angles or angles
        first = [0] * len(stages)
        for index, (stage, columns) in enumerate(chain.outputs):
            whole = columns == stages[stage].columns
            made = _Made(stage + shift, first[stage], columns, whole, chain.rotated[index])
            self._made[_key(node.output(index))] = made
            first[stage] += columns
        self._stages += stages
        self._constants += inputs[chain.given :]

    def _continued(self, stage: Stage, given: Iterator[Any], shift: int) -> Stage:
        """`stage` with earlier stages for what it is given."""
        source = stage.source + shift
        if stage.source == GIVEN:
            value = next(given)
            attention = _origin(value)
            if attention.get_node().get_type_name() == ATTENTION and stage.before == "nothing":
                stage = replace(stage, before="attention", parts=self._attended(attention))
                source = NONE
            else:
                source = self._stage_of(value)
        residual = stage.residual
        if residual != NONE:
            residual = self._stage_of(next(given)) if residual == GIVEN else residual + shift
        return replace(stage, source=source, residual=residual)

    def _stage_of(self, value: Any) -> int:
        """Whose whole result `value` is; `GIVEN`: it is the embedding, the first that is taken."""
        if not self._given or _key(value) == _key(self._given[0]):
            self._given.append(value)
            return GIVEN
        made = self._made.get(_key(_origin(value)))
        if made is None or not made.whole or made.rotated:
            raise _Unfit
        return made.stage

    def _attended(self, output: Any) -> tuple[int, ...]:
        """Where queries, keys and values of this attention are made."""
        inputs = output.get_node().input_values()
        names = [value.get_node().get_friendly_name() for value in inputs]
        caches = [name.format(self._layers) for name in CACHES]
        others = inputs[SCALE + 1 : MOST] + inputs[MOST + 1 :]
        if output.get_index() or names[3:SCALE] != [*caches, *SEQUENCES] or any(map(_says, others)):
            raise _Unfit
        parts = [self._made.get(_key(_origin(value))) for value in inputs[:3]]
        found = [part for part in parts if part is not None]
        scale = inputs[SCALE].get_node()
        if len(found) != 3 or scale.get_type_name() != "Constant":
            raise _Unfit
        queries, keys, values = (part.columns for part in found)
        width = self._width(output.get_node())
        rotated = [part.rotated for part in found]
        heads = Heads(
            *(queries // width, keys // width, width),
            scale=float(scale.data.item()),
            turned=any(rotated),
        )
        if keys != values or queries % keys or keys % width or width % 32:
            raise _Unfit
        if self._heads not in (Heads(), heads):
            raise _Unfit
        if rotated not in ([0, 0, 0], [width, width, 0]):
            raise _Unfit
        self._heads = heads
        self._layers += 1
        return tuple(number for part in found for number in (part.stage, part.first))

    def _width(self, attention: Any) -> int:
        """Of its heads: how keys are cut before they become rows again."""
        node = attention.input_value(1).get_node()
        while node.get_type_name() in SAME:
            shape = node.get_output_partial_shape(0)
            if shape.rank.get_length() == 4 and shape[3].is_static:
                return int(shape[3].get_length())
            node = node.input_value(0).get_node()
        raise _Unfit


def _parameter(name: str) -> Any:
    node = opset13.parameter([-1], ov.Type.i32, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def _key(output: Any) -> _Key:
    return output.get_node().get_friendly_name(), output.get_index()


def _origin(output: Any) -> Any:
    """What `output` is, but for its shape."""
    while True:
        node = output.get_node()
        kind = node.get_type_name()
        if kind not in SAME or (kind == "Transpose" and not _keeps_order(node)):
            return output
        output = node.input_value(0)


def _keeps_order(transpose: Any) -> bool:
    """Whether only axes of size 1 change their place."""
    order = transpose.input_value(1).get_node()
    if order.get_type_name() != "Constant":
        return False
    shape = transpose.input_value(0).get_partial_shape()
    moved = [axis for axis in order.data.tolist() if shape[axis] != 1]
    return moved == sorted(moved)


def _says(value: Any) -> bool:
    """Whether an input of attention asks for something besides."""
    node = value.get_node()
    return node.get_type_name() != "Constant" or bool(np.any(node.data))
