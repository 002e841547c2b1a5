"""The compiled model: one step's token rows in, logits of chosen rows out.

OpenVINO's paged-attention transformation turns the stateful IR into a model that takes the
tokens of many sequences in one flat row, and reads and writes their keys and values in blocks
of a cache that we own. A Gather put before the output projection keeps that largest of the
products to the rows whose logits are wanted.

With weights of the form a8, sequences with a single token in the step are computed by a second
model over the same cache (`weights/decoder.py`), in the same step.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13
from openvino._offline_transformations import paged_attention_transformation

from maestrale.engines.base import WeightFormat
from maestrale.engines.openvino.kv_cache import BLOCK_SIZE
from maestrale.engines.openvino.notes import note_key, recall, remember
from maestrale.engines.openvino.rehearsal import MIN_CHUNK
from maestrale.engines.openvino.step import StepInput, padded, part, rows_of, singles_of
from maestrale.engines.openvino.weights.chain import OPERATION
from maestrale.engines.openvino.weights.decoder import ADDRESSES, decoder
from maestrale.engines.openvino.weights.extension import add_extension, digest
from maestrale.engines.openvino.weights.repack import GRAPH, repack, save_repacked
from maestrale.errors import ModelError

# No quantisation of activations over groups of rows, no rounding of cached keys and values. With
# these, a row's result depends on its batch only through the shape of the matrix products.
DETERMINISTIC_OPTIONS = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "KV_CACHE_PRECISION": "f32",
    "INFERENCE_PRECISION_HINT": "f32",
}

# OpenVINO's kernels for one row (of attention, too), and for very many, add up in another order
# than those between. So an exact step has at least two rows, and no more than the largest of these
# counts that gives the same bits. `PagedModel` tries them at start: 80 where this was written,
# more with our own products.
EXACT_STEP_TOKENS = (512, 256, 80, 64, 48, 32)
LEAST_ROWS = 2
EXACT_STEPS_NOTES = "exact_steps.json"


logger = logging.getLogger(__name__)


class PagedModel:
    """A language model compiled for paged attention, with its KV cache."""

    def __init__(
        self,
        folder: Path,
        *,
        kv_cache_bytes: int,
        threads: int,
        deterministic: bool,
        weight_format: WeightFormat = "original",
    ) -> None:
        """Load, transform and compile the IR in `folder`, and allocate the cache.

        Raises: ModelError when the IR can't be read, is not a decoder, or when the cache is
        too small for a single block.
        """
        self.options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # A pinned thread can't give way when the API process needs its core.
            "ENABLE_CPU_PINNING": False,
        }
        if deterministic:
            self.options |= DETERMINISTIC_OPTIONS
        self.weight_format = weight_format
        core = ov.Core()
        try:
            model, extension = _read(core, folder, weight_format)
            paged_attention_transformation(model)
            singles = decoder(model, extension) if extension else None
            if singles:  # it reads and writes float32
                self.options |= DETERMINISTIC_OPTIONS
            self.vocab_size = _gather_before_projection(model)
            model.validate_nodes_and_infer_types()
            compiled = core.compile_model(model, "CPU", self.options)
            if singles:
                singles = core.compile_model(singles, "CPU", self.options)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO can't run the model in {folder}: {error}") from error
        del model
        self._request = compiled.create_infer_request()
        self._singles = singles.create_infer_request() if singles else None
        self._caches: list[NDArray[Any]] = []  # of each layer, by block
        self.num_blocks, self.bytes_per_block = self._allocate(compiled, kv_cache_bytes)
        if self._singles:
            addresses = np.array([cache.ctypes.data for cache in self._caches], np.int64)
            words = addresses.view(np.int32)
            self._singles.set_tensor(ADDRESSES, ov.Tensor(words, shared_memory=False))
        self._pads = deterministic
        # Most tokens in a step that keep its rows exact; 0: this machine gives no such promise.
        self.exact_step_tokens = self._exact_step_tokens(folder) if deterministic else 0

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
        bytes_per_block = bits // 8
        blocks = int(budget // bytes_per_block) - 1
        if blocks < 1:
            raise ModelError(
                f"A KV cache of {budget} bytes is too small: a block takes {bytes_per_block}. "
                "Raise --kv-cache-memory."
            )
        for port, tail in caches:
            # Not touched here: the system commits a page when a block is first written.
            # The last block, beyond the counted ones, is written by rows added as padding.
            tensor = ov.Tensor(port.get_element_type(), ov.Shape([blocks + 1, *tail]))
            self._request.set_tensor(port, tensor)
            self._caches.append(tensor.data)
        return blocks, bytes_per_block

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block's keys and values of all layers over another's."""
        for cache in self._caches:
            cache[target] = cache[source]

    def infer(self, step: StepInput) -> NDArray[np.float32]:
        """Run one step; returns logits [R, vocab], valid until the next call."""
        single = singles_of(step)
        if self._singles is None or not single.any():
            return self._infer_paged(step)
        if single.all():
            return self._infer_singles(step)
        logits = np.empty((len(step.logit_rows), self.vocab_size), np.float32)
        wanted = rows_of(step, single)[step.logit_rows]
        logits[wanted] = self._infer_singles(part(step, single))
        logits[~wanted] = self._infer_paged(part(step, ~single))
        return logits

    def _infer_singles(self, step: StepInput) -> NDArray[np.float32]:
        """Where each sequence has one token: in one operation, exact with any number of rows."""
        logits = _run(
            self._singles,
            {
                "input_ids": step.token_ids,
                "position_ids": step.positions,
                "past_lens": step.past_lens,
                "block_indices": step.block_indices,
                "block_indices_begins": step.block_begins,
            },
        ).reshape(len(step.token_ids), self.vocab_size)
        return logits if len(step.logit_rows) == len(logits) else logits[step.logit_rows]

    def _infer_paged(self, step: StepInput) -> NDArray[np.float32]:
        wanted = len(step.logit_rows)
        if self._pads:
            step = padded(step, LEAST_ROWS, spare_block=self.num_blocks)
        logits = _run(
            self._request,
            {
                "input_ids": step.token_ids,
                "position_ids": step.positions,
                "past_lens": step.past_lens,
                "subsequence_begins": step.sequence_begins,
                "block_indices": step.block_indices,
                "block_indices_begins": step.block_begins,
                "max_context_len": np.array(step.max_context_len, np.int32),
                "logit_rows": step.logit_rows,
            },
        )
        return logits.reshape(len(step.logit_rows), self.vocab_size)[:wanted]

    def _exact_step_tokens(self, folder: Path) -> int:
        notes = folder / EXACT_STEPS_NOTES
        kernel = [digest()] if self.weight_format == "a8" else []
        key = note_key([self.weight_format, *kernel, *sorted(self.options.items())])
        known = recall(notes, key)
        if not isinstance(known, int):
            known = self._find_exact_step_tokens()
            remember(notes, key, known)
        return known

    def _find_exact_step_tokens(self) -> int:
        """The largest step whose first sequence gets the bits that it gets in the least one."""
        expected = self._probe(LEAST_ROWS)
        for tokens in EXACT_STEP_TOKENS:
            if all(self._probe(count) == expected for count in (tokens, tokens // 2)):
                return tokens
        return 0

    def _probe(self, tokens: int) -> bytes:
        """The logits of a short sequence, beside another that makes it `tokens` in all.

        It has one token, or as many as the least chunk where single ones are computed otherwise.
        """
        own = MIN_CHUNK if self._singles else 1
        others = min(tokens - own, self.num_blocks * BLOCK_SIZE)
        blocks = -(-others // BLOCK_SIZE)
        lengths = [own, others] if others else [own]
        ends = np.cumsum(lengths)
        step = StepInput(
            token_ids=np.arange(1, own + others + 1) % self.vocab_size,
            positions=np.concatenate([np.arange(length) for length in lengths]),
            past_lens=np.zeros(len(lengths), np.int32),
            sequence_begins=np.append(0, ends).astype(np.int32),
            block_indices=np.append(self.num_blocks, np.arange(blocks)).astype(np.int32),
            block_begins=np.append(0, [1, 1 + blocks][: len(lengths)]).astype(np.int32),
            logit_rows=(ends - 1).astype(np.int64),
            max_context_len=max(lengths),
        )
        return bytes(self._infer_paged(step)[0].tobytes())


def _run(request: Any, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    for name, array in arrays.items():
        request.set_tensor(name, ov.Tensor(array))
    request.infer()
    logits: NDArray[np.float32] = request.get_tensor("logits").data
    return logits


def _read(core: Any, folder: Path, weight_format: WeightFormat) -> tuple[Any, Path | None]:
    """The model in `folder`, in the form that is asked for; the extension that this form needs."""
    if weight_format == "original":
        return core.read_model(folder / GRAPH), None
    done = save_repacked(folder, weight_format)
    if done is not None:
        operations = add_extension(core, done) if weight_format == "a8" else None
        try:
            return core.read_model(done / GRAPH), operations
        except RuntimeError:
            logger.warning("%s is damaged. It is made anew at the next start.", done)
            shutil.rmtree(done, ignore_errors=True)
    else:
        logger.warning(
            "%s can't be written, or is full: its weights are repacked at each start.", folder
        )
    model = core.read_model(folder / GRAPH)
    operations = add_extension(core, None) if weight_format == "a8" else None
    repack(model, weight_format, operations)
    return model, operations


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
