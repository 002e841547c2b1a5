"""A model as one operation of ours, over a KV cache of 8 bits a value (`weights/decoder.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from maestrale.engines.openvino.kv_cache import blocks_in
from maestrale.engines.openvino.step import StepInput, run
from maestrale.engines.openvino.weights.decoder import ADDRESSES, LOGIT_ROWS, Decoder

NO_ROWS = np.array([-1], np.int32)


class WholeGraph:
    """`decoder`, compiled, with its KV cache."""

    one_way = True  # a token has the same bits alone and in any chunk

    def __init__(self, core: Any, decoder: Decoder, options: dict[str, Any], budget: int) -> None:
        """Raises: RuntimeError of OpenVINO; ModelError where the budget, in bytes, is too small."""
        compiled = core.compile_model(decoder.model, "CPU", options)
        self._request = compiled.create_infer_request()
        self.vocab_size = int(list(compiled.output("logits").get_partial_shape())[-1].get_length())
        self.bytes_per_block = decoder.layers * decoder.block_bytes
        self.num_blocks = blocks_in(budget, self.bytes_per_block)
        # Of each layer, by block. Not touched here: the system commits a page when it is first
        # written. The last block is for trials at start.
        shape = (self.num_blocks + 1, decoder.block_bytes)
        self.caches: list[NDArray[Any]] = [np.empty(shape, np.uint8) for _ in range(decoder.layers)]
        addresses = np.array([cache.ctypes.data for cache in self.caches], np.int64)
        words = ov.Tensor(addresses.view(np.int32), shared_memory=False)
        self._request.set_tensor(ADDRESSES, words)

    def infer(self, step: StepInput) -> NDArray[np.float32]:
        """Run one step; returns logits [R, vocab], valid until the next call."""
        wanted = len(step.logit_rows)
        rows = step.logit_rows.astype(np.int32) if wanted else NO_ROWS
        logits = run(self._request, step, **{LOGIT_ROWS: rows})
        return logits.reshape(-1, self.vocab_size)[:wanted]
