"""Products of the weights as they are stored with activations of 8 bits: our own operation.

Each takes in what stands directly before and after it (`neighbours.py`), and those that follow
each other become a chain: one operation from a layer's attention to that of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from openvino import opset13
from openvino.utils.node_factory import NodeFactory

from maestrale.engines.openvino.weights.chain import GIVEN, NONE, NOT_WHOLE, OPERATION, Chain, Stage
from maestrale.engines.openvino.weights.compressed import Float
from maestrale.engines.openvino.weights.neighbours import (
    Rotation,
    feeds_gate,
    gate_of,
    norm_of,
    only_user,
    residual_after,
    rotation_of,
    users,
    variable_inputs,
)
from maestrale.engines.openvino.weights.packing import GROUP, TILE, Grouped, grouped, packed
from maestrale.engines.openvino.weights.rewiring import rewire, rewire_to_parts

LAST = ("Result", "Convert")  # after the products that give a model's logits


@dataclass(frozen=True)
class A8Projection:
    """A product with its weights as the extension wants them."""

    node: Any
    weights: Grouped

    @property
    def outputs(self) -> int:
        return len(self.weights.values)


def a8_projection(node: Any, weights: Float) -> A8Projection | None:
    """None where the inputs don't fill groups: left as it is."""
    if weights.shape[1] % GROUP:
        return None
    return A8Projection(node, grouped(node.input_value(1).get_node(), weights))


class A8Products:
    """Puts operations of the extension into a graph, first layer first."""

    def __init__(self, extension: Path) -> None:
        self._factory = NodeFactory()
        self._factory.add_extension(extension)
        self._gone: set[str] = set()  # nodes that were replaced, and still hang on their inputs

    def join(self, projections: Sequence[A8Projection]) -> None:
        """Put one operation in the place of products with the same input, and its neighbours'."""
        # A gate comes first, as the operation has it.
        projections = sorted(projections, key=lambda found: not feeds_gate(found.node))
        columns = [projection.outputs for projection in projections]
        nodes = [projection.node for projection in projections]
        source = nodes[0].input_value(0)
        weights = opset13.constant(packed([p.weights for p in projections])).output(0)
        width = projections[0].weights.values.shape[1] * GROUP
        given, constants = [source], [weights]
        stage = Stage(sum(columns), width, projections[0].weights.bits)
        if (norm := norm_of(source, width)) is not None:
            given = [norm.x]
            constants.append(opset13.constant(norm.gain).output(0))
            stage = replace(stage, before="norm", epsilon=norm.epsilon)
        elif (both := self._gate_and_up(source, nodes)) is not None:
            given = [both]
            stage = replace(stage, before="gate")
        outputs = [node.output(0) for node in nodes]
        if len(nodes) == 1 and (after := residual_after(nodes[0])) is not None:
            total, other = after
            outputs = [total.output(0)]
            given.append(other)
            stage = replace(stage, residual=GIVEN)
        whole_tiles = not any(count % TILE for count in columns[:-1])
        lengths = columns if whole_tiles else [sum(columns)]
        chain = Chain.plain([stage], [(0, length) for length in lengths])
        product = self._create([*given, *constants], chain)
        if whole_tiles:
            for index, output in enumerate(outputs):
                rewire(output, product.output(index))
        else:
            rewire_to_parts(outputs, product.output(0), columns)

    def link(self, model: Any) -> None:
        """Make one operation of those of which each needs nothing but what the one before made."""
        latest: dict[str, Any] = {}
        for node in model.get_ordered_ops():
            if node.get_type_name() != OPERATION:
                continue
            givers = {v.get_node().get_friendly_name() for v in variable_inputs(node)}
            before = latest.get(givers.pop()) if len(givers) == 1 else None
            linked = None if before is None else self._linked(before, node)
            node = linked or node
            latest[node.get_friendly_name()] = node

    def complete(self, model: Any) -> None:
        """Take in rotary embedding, and put the constants of each operation into one.

        Both are less for OpenVINO to do in every step.
        """
        for node in model.get_ordered_ops():
            if node.get_type_name() != OPERATION:
                continue
            chain = Chain.of(node)
            inputs = node.input_values()
            given, parts = inputs[: chain.given], inputs[chain.given :]
            rotations = _rotations(node)
            if first := next((found for found in rotations if found), None):
                given += [first.cos, first.sin]
                chain = replace(chain, rotated=[found.width if found else 0 for found in rotations])
            bytes_ = [part.get_node().data.reshape(-1).view(np.uint8) for part in parts]
            constant = opset13.constant(np.concatenate(bytes_)).output(0)
            new = self._create([*given, constant], chain)
            for index, old in enumerate(node.outputs()):
                rewire(old, new.output(index))
                if found := rotations[index]:
                    rewire(found.rotated, found.heads)

    def _linked(self, first: Any, second: Any) -> Any | None:
        """Both as one operation. None: what `second` takes, or makes, stands in the way."""
        if any(target.get_node().get_type_name() in LAST for target in users(second)):
            return None  # of its rows the model's logits are picked
        before, after = Chain.of(first), Chain.of(second)
        stages = list(before.stages)
        given = iter(second.input_values())
        shift = len(before.stages)

        def moved(stage: int) -> int:
            """What was given comes from a stage now; the others come later by as many."""
            return before.made_by(next(given).get_index()) if stage == GIVEN else stage + shift

        for stage in after.stages:
            source = moved(stage.source)
            residual = NONE if stage.residual == NONE else moved(stage.residual)
            stages.append(replace(stage, source=source, residual=residual))
        if any(NOT_WHOLE in (stage.source, stage.residual) for stage in stages):
            return None
        kept = [
            index
            for index in range(len(before.outputs))
            if not only_user(first.output(index), second, self._gone)
        ]
        outputs = [before.outputs[index] for index in kept]
        outputs += [(stage + shift, length) for stage, length in after.outputs]
        inputs = [*first.input_values(), *second.input_values()[after.given :]]
        node = self._create(inputs, Chain.plain(stages, outputs))
        olds = [*(first.output(index) for index in kept), *second.outputs()]
        for index, old in enumerate(olds):
            rewire(old, node.output(index))
        self._gone |= {first.get_friendly_name(), second.get_friendly_name()}
        return node

    def _gate_and_up(self, source: Any, takers: Sequence[Any]) -> Any | None:
        """Swish(gate) * up where both come from one operation: both in one output, side by side."""
        found = gate_of(source)
        if found is None or len(takers) != 1 or not only_user(source, takers[0]):
            return None
        gate, up = found.gate, found.up
        product = gate.get_node()
        if product.get_type_name() != OPERATION or up.get_node() != product:
            return None
        order = (gate.get_index(), up.get_index(), product.get_output_size())
        apart = only_user(up, source.get_node()) and len(gate.get_target_inputs()) == 1
        if order != (0, 1, 2) or not apart:
            return None
        stages = Chain.of(product).stages
        whole = Chain.plain(stages, [(0, stages[0].columns)])
        return self._create(product.input_values(), whole).output(0)

    def _create(self, inputs: Sequence[Any], chain: Chain) -> Any:
        return self._factory.create(OPERATION, list(inputs), chain.attributes())


def _rotations(node: Any) -> list[Rotation | None]:
    """Of each output of `node`; of those that differ in what they are turned by, the first's."""
    found = [rotation_of(output) for output in node.outputs()]
    first = next((rotation for rotation in found if rotation), None)
    return [rotation if rotation and rotation.like(first) else None for rotation in found]
