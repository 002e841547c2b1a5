"""A model with OpenVINO's own paged attention, for every form of the weights.

OpenVINO's paged-attention transformation turns the stateful IR into a model that takes the
tokens of many sequences in one flat row, and reads and writes their keys and values in blocks
of a cache that we own. A Gather put before the output projection keeps that largest of the
products to the rows whose logits are wanted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13

from maestrale.engines.openvino.kv_cache import BLOCK_SIZE, blocks_in
from maestrale.engines.openvino.step import StepInput, padded, run
from maestrale.engines.openvino.weights.chain import OPERATION
from maestrale.errors import ModelError


class PagedGraph:
    """`model`, transformed for paged attention, compiled, with its KV cache."""

    one_way = False  # a token alone and one of a chunk are rounded otherwise

    def __init__(
        self, core: Any, model: Any, options: dict[str, Any], budget: int, *, least_rows: int
    ) -> None:
        """`least_rows`: tokens and logits of a step, at least; more are computed than is asked.

        Raises: RuntimeError of OpenVINO; ModelError where the model is no decoder, or the budget,
        in bytes, too small for a block.
        """
        self.vocab_size = _gather_before_projection(model)
        model.validate_nodes_and_infer_types()
        compiled = core.compile_model(model, "CPU", options)
        self._request = compiled.create_infer_request()
        self._least_rows = least_rows
        self.caches: list[NDArray[Any]] = []  # of each layer, by block
        self.num_blocks, self.bytes_per_block = self._allocate(compiled, budget)

    def _allocate(self, compiled: Any, budget: int) -> tuple[int, int]:
        """Give every layer its cache tensors; returns (blocks, bytes of one block)."""
        caches = []
        for port in compiled.inputs:
            name = port.get_any_name()
            if not name.startswith(("key_cache.", "value_cache.")):
                continue
            tail = [dimension.get_length() for dimension in list(port.get_partial_shape())[1:]]
            caches.append((port, tail))
            if name.startswith("value_cache.") and tail[1] != BLOCK_SIZE:
                raise ModelError(
                    f"OpenVINO's KV blocks hold {tail[1]} tokens; this version of maestrale "
                    f"expects {BLOCK_SIZE}. Install the versions in requirements.lock."
                )
        if not caches:
            raise ModelError("The model has no attention layers with a KV cache.")
        bits = sum(port.get_element_type().bitwidth * math.prod(tail) for port, tail in caches)
        blocks = blocks_in(budget, bits // 8)
        for port, tail in caches:
            # Not touched here: the system commits a page when a block is first written.
            # The last block, beyond the counted ones, is written by rows added as padding.
            tensor = ov.Tensor(port.get_element_type(), ov.Shape([blocks + 1, *tail]))
            self._request.set_tensor(port, tensor)
            self.caches.append(tensor.data)
        return blocks, bits // 8

    def infer(self, step: StepInput) -> NDArray[np.float32]:
        """Run one step; returns logits [R, vocab], valid until the next call."""
        wanted = len(step.logit_rows)
        step = padded(step, self._least_rows, spare_block=self.num_blocks)
        logits = run(
            self._request,
            step,
            max_context_len=np.array(step.max_context_len, np.int32),
            logit_rows=step.logit_rows,
        )
        return logits.reshape(len(step.logit_rows), self.vocab_size)[:wanted]


def _gather_before_projection(model: Any) -> int:
    """Add the input `logit_rows` [R], so that only these rows are projected to logits.

    Returns the vocabulary's size. Raises: ModelError when the projection is not found.
    """
    output = model.output("logits")
    node = output.get_node()
    while node.get_type_name() not in ("MatMul", OPERATION):
        if node.get_input_size() == 0:
            raise ModelError("The model's logits don't come from a projection (MatMul).")
        node = node.input_value(0).get_node()
    rows = opset13.parameter([-1], ov.Type.i64, name="logit_rows")
    rows.output(0).get_tensor().set_names({"logit_rows"})
    axis = opset13.constant(np.int64(0))
    picked = opset13.gather(node.input_value(0), rows, axis)
    node.input(0).replace_source_output(picked.output(0))
    model.add_parameters([rows])
    size = list(output.get_partial_shape())[-1]
    if size.is_dynamic:
        raise ModelError("The size of the model's vocabulary is not fixed in its graph.")
    return int(size.get_length())
