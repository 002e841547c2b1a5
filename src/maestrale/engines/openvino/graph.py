"""The compiled model: one step's token rows in, logits of chosen rows out.

With weights of the form a8 most models become one operation of ours (`graph_whole.py`); the others
keep OpenVINO's paged attention (`graph_paged.py`).
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino._offline_transformations import paged_attention_transformation

from maestrale.engines.base import WeightFormat
from maestrale.engines.openvino.graph_paged import PagedGraph
from maestrale.engines.openvino.graph_whole import WholeGraph
from maestrale.engines.openvino.kv_cache import BLOCK_SIZE
from maestrale.engines.openvino.notes import note_key, recall, remember
from maestrale.engines.openvino.step import StepInput
from maestrale.engines.openvino.weights.decoder import decoder
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
# counts that gives the same bits. `PagedModel` tries them at start: 80 where this was written, the
# most with our own operation, which has one order only.
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
            whole = decoder(model, extension) if extension else None
            if whole:  # what OpenVINO still does is to give it float32
                self.options |= DETERMINISTIC_OPTIONS
                self._graph: WholeGraph | PagedGraph = WholeGraph(
                    core, whole, self.options, kv_cache_bytes
                )
            else:
                least = LEAST_ROWS if deterministic else 1
                self._graph = PagedGraph(
                    core, model, self.options, kv_cache_bytes, least_rows=least
                )
        except RuntimeError as error:
            raise ModelError(f"OpenVINO can't run the model in {folder}: {error}") from error
        self.vocab_size = self._graph.vocab_size
        self.num_blocks = self._graph.num_blocks
        self.bytes_per_block = self._graph.bytes_per_block
        # Whether a token alone has the bits that it has in a chunk.
        self.one_way = self._graph.one_way
        # Most tokens in a step that keep its rows exact; 0: this machine gives no such promise.
        self.exact_step_tokens = self._exact_step_tokens(folder) if deterministic else 0

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block's keys and values of all layers over another's."""
        for cache in self._graph.caches:
            cache[target] = cache[source]

    def infer(self, step: StepInput) -> NDArray[np.float32]:
        """Run one step; returns logits [R, vocab], valid until the next call."""
        return self._graph.infer(step)

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
        """The logits of a token beside a sequence that makes it `tokens` in all."""
        others = min(tokens - 1, self.num_blocks * BLOCK_SIZE)
        blocks = -(-others // BLOCK_SIZE)
        step = StepInput(
            token_ids=np.arange(1, others + 2) % self.vocab_size,
            positions=np.append(0, np.arange(others)),
            past_lens=np.zeros(2, np.int32),
            sequence_begins=np.array([0, 1, 1 + others], np.int32),
            block_indices=np.append(self.num_blocks, np.arange(blocks)).astype(np.int32),
            block_begins=np.array([0, 1, 1 + blocks], np.int32),
            logit_rows=np.array([0, others], np.int64),
            max_context_len=max(1, others),
        )
        return bytes(self.infer(step)[0].tobytes())


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
