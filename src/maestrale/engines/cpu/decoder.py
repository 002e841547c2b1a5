"""A decoder in the kernel: opened from a model's files, then one call a step."""

from __future__ import annotations

import ctypes
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maestrale.engines.cpu.architectures import DescribedModel
from maestrale.engines.cpu.architectures.classifier import Classifier
from maestrale.engines.cpu.library import (
    ACTIVATIONS,
    ERROR_SIZE,
    SOFTMAX_THEN_TOP,
    TOP_THEN_SOFTMAX,
    BatchStruct,
    LayerStruct,
    Library,
    ModelStruct,
    RopeStruct,
    floats,
    model_error,
)
from maestrale.engines.cpu.model_files import open_model
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.packing import Packer
from maestrale.engines.cpu.weights.roles import LayerRoles, Vector
from maestrale.errors import EngineError

LoadProgress = Callable[[float], None]
Int32Array = NDArray[np.int32]
PROBED_ROWS = 16  # that are multiplied with one matrix, to know how long all take


@dataclass(frozen=True)
class Batch:
    """One step: T tokens of S sequences, all int32.

    The tokens of sequence s are `begins`[s] to `begins`[s + 1]; `past`[s] others of it lie in its
    blocks, `blocks`[`block_begins`[s]] and on. `logit_rows`: for which of the T tokens logits are
    wanted; `hidden_rows`: of which what is behind the final norm.
    """

    token_ids: Int32Array
    past: Int32Array
    begins: Int32Array
    blocks: Int32Array
    block_begins: Int32Array
    logit_rows: Int32Array
    hidden_rows: Int32Array = field(default_factory=lambda: np.empty(0, np.int32))


class Decoder:
    """A model that computes.

    `identity` names what decides its results but for the kernel's `arithmetic`: two decoders for
    which both are equal give the same bits, on any machine. `level`: the instruction set.
    """

    def __init__(
        self,
        described: DescribedModel,
        library: Library,
        *,
        context: int,
        threads: int,
        level: str | None,
        exact: bool,
        progress: LoadProgress | None,
    ) -> None:
        """Raises: ModelError, EngineError."""
        self.spec = described.spec.serving(context)
        self.arithmetic = library.arithmetic
        self.vocab_size = self.spec.vocab
        self.num_blocks = 0
        self._library = library
        self._handle: int | None = None
        self._logits = np.empty((0, self.spec.vocab), np.float32)
        self._hidden = np.empty((0, self.spec.hidden), np.float32)
        self._kept: list[Any] = []  # what the kernel has pointers to
        # A reranker's rows, their biases, and of two rows which is for yes.
        self.classifier: tuple[NDArray[np.float32], NDArray[np.float32], int] | None = None
        number = library.level("scalar" if exact and level is None else level)
        self._number = number
        self.level = str(library.mst_level_name(number).decode())
        self._error = error = ctypes.create_string_buffer(ERROR_SIZE)
        self._pool = library.mst_pool_open(threads, error, ERROR_SIZE)
        if not self._pool:
            raise EngineError(f"{threads} threads can't be started: {error.value.decode()}")
        self._packer = Packer(library, self._pool, described.source.mapped)
        try:
            model = self._model(described, progress)
            handle = library.mst_decoder_open(
                self._pool, number, ctypes.byref(model), int(exact), error, ERROR_SIZE
            )
            if not handle:
                raise model_error(error, f"{described.source.path} can't be computed")
        except BaseException:
            self.close()
            raise
        self._handle = handle
        self.weight_bytes = self._packer.bytes
        self.block_bytes = int(library.mst_block_bytes(handle))
        self.identity = self._identity()

    def open_cache(self, blocks: int) -> None:
        """Take a KV cache of so many blocks, once, before the first step. Raises: EngineError."""
        error = self._error
        if self._library.mst_cache_open(self._handle, blocks, error, ERROR_SIZE) < 0:
            raise EngineError(f"No KV cache of {blocks} blocks: {error.value.decode()}")
        self.num_blocks = blocks

    def copy_block(self, source: int, target: int) -> None:
        """Copy one block of the KV cache, all layers."""
        self._library.mst_copy_block(self._handle, source, target)

    def step(self, batch: Batch) -> NDArray[np.float32]:
        """Compute one step; logits [rows, vocab], valid until the next. Raises: EngineError."""
        return self.step_both(batch)[0]

    def step_both(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `step`, and hidden rows [rows, hidden], those of `batch.hidden_rows`."""
        rows, hidden_rows = len(batch.logit_rows), len(batch.hidden_rows)
        if rows > len(self._logits):
            self._logits = np.empty((rows, self.spec.vocab), np.float32)
        if hidden_rows > len(self._hidden):
            self._hidden = np.empty((hidden_rows, self.spec.hidden), np.float32)
        struct = BatchStruct(tokens=len(batch.token_ids), sequences=len(batch.past))
        struct.rows, struct.hidden_rows = rows + hidden_rows, hidden_rows
        wanted = np.concatenate([batch.logit_rows, batch.hidden_rows])
        arrays = [*(getattr(batch, name) for name in _ARRAYS[:-1]), wanted]
        arrays = [np.ascontiguousarray(array, np.int32) for array in arrays]
        for name, array in zip(_ARRAYS, arrays, strict=True):
            setattr(struct, name, array.ctypes.data)
        logits = self._logits.ctypes.data if rows else None
        hidden = self._hidden.ctypes.data if hidden_rows else None
        error = self._error
        status = self._library.mst_step(
            self._handle, ctypes.byref(struct), logits, hidden, error, ERROR_SIZE
        )
        if status < 0:
            raise EngineError(f"A step can't be computed: {error.value.decode()}")
        return self._logits[:rows], self._hidden[:hidden_rows]

    def logits_row(self, token: int) -> NDArray[np.float32]:
        """What the hidden row is multiplied with for a token's logit, [hidden]."""
        row: NDArray[np.float32] = self._unpacked(self._logits_matrix, token, 1)[0]
        return row

    def enlarge_pages(self, size: int) -> int:
        """Put so many bytes of weights, or a few more, into large pages, where the system was too
        slow with these for a start; returns how many bytes are left.
        """
        return int(self._library.mst_pool_enlarge(self._pool, size))

    def step_seconds(self, tokens: int) -> float:
        """About how long a step of so many tokens takes, by the time of its largest product."""
        handle, rows, columns = self._packer.largest
        inputs = np.ones((PROBED_ROWS, columns), np.float32)
        results = np.empty((PROBED_ROWS, rows), np.float32)
        begun = time.perf_counter()
        self._library.mst_matrix_multiply(
            *(self._pool, self._number, handle, inputs.ctypes.data_as(floats), PROBED_ROWS),
            *(results.ctypes.data_as(floats), 0),
        )
        seconds = time.perf_counter() - begun
        size = int(self._library.mst_matrix_bytes(handle))
        return seconds * self.weight_bytes / size * tokens / PROBED_ROWS

    def close(self) -> None:
        """Give everything back to the system. The decoder can't be used any more."""
        if self._handle:
            self._library.mst_decoder_close(self._handle)
        self._handle = None
        self._packer.free()
        if self._pool:
            self._library.mst_pool_close(self._pool)
        self._pool = None
        self._kept.clear()

    def _model(self, described: DescribedModel, progress: LoadProgress | None) -> ModelStruct:
        spec, roles = self.spec, described.roles
        sizes = [rows.rows * rows.columns for rows in roles.matrices()]
        total, behind, mapped = max(sum(sizes), 1), 0, described.source.mapped

        def packed(rows: Any) -> int:
            nonlocal behind
            handle = self._packer.matrix(rows)
            mapped.release(mapped.tensors[rows.tensor])
            behind += rows.rows * rows.columns
            if progress is not None:
                progress(behind / total)
            return handle

        embedding = packed(roles.embedding)
        layers = (LayerStruct * spec.layers)()
        for number, layer in enumerate(roles.layers):
            self._fill(layers[number], number, layer, packed)
        model = _plain(spec)
        model.layer = layers
        model.embedding = embedding
        model.logits = embedding if roles.logits is None else packed(roles.logits)
        self._logits_matrix = int(model.logits)
        model.final_norm = self._floats(self._packer.vector(roles.final_norm))
        if described.classifier is not None:
            self.classifier = self._classifier(described.classifier)
        if roles.logits_bias is not None:
            model.logits_bias = self._floats(self._packer.vector(roles.logits_bias))
        self._tables(model)
        self._kept += [layers, model]
        return model

    def _classifier(
        self, found: Classifier
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        """The values as the file has them: they are few, so they aren't rounded to 8 bits."""
        rows, size = found.weight, found.weight.rows * found.weight.columns
        if self._packer.is_plain(rows.tensor):
            weight = self._packer.vector(Vector(rows.tensor, size)).reshape(rows.rows, -1)
        else:
            weight = self._unpacked(self._packer.matrix(rows), 0, rows.rows)
        bias = np.zeros(rows.rows, np.float32)
        if found.bias is not None:
            bias = self._packer.vector(found.bias)
        self._kept += [weight, bias]
        return weight, bias, found.yes

    def _unpacked(self, matrix: int, first: int, rows: int) -> NDArray[np.float32]:
        """Rows of a packed matrix of `hidden` columns."""
        out = np.empty((rows, self.spec.hidden), np.float32)
        status = self._library.mst_matrix_unpack(matrix, first, rows, out.ctypes.data_as(floats))
        assert status >= 0
        return out

    def _fill(
        self, struct: LayerStruct, number: int, layer: LayerRoles, packed: Callable[[Any], int]
    ) -> None:
        spec = self.spec
        struct.window, struct.rope = spec.windows[number], spec.layer_ropes[number]
        struct.whole_head_norm = int(spec.whole_head_norm)
        for name, vector in layer.vectors():
            setattr(struct, name, self._floats(self._packer.vector(vector)))
        experts: dict[str, list[int]] = {}
        for name, rows in layer.matrices():
            handle = packed(rows)
            if name.startswith("expert_"):
                experts.setdefault(name, []).append(handle)
            else:
                setattr(struct, name, handle)
        for name, handles in experts.items():
            array = (ctypes.c_void_p * len(handles))(*handles)
            self._kept.append(array)
            setattr(struct, name, array)

    def _tables(self, model: ModelStruct) -> None:
        """Rotary embeddings, and temperatures by position."""
        spec = self.spec
        ropes = (RopeStruct * max(len(spec.ropes), 1))()
        for struct, rope in zip(ropes, spec.ropes, strict=False):
            struct.dims, struct.scale = rope.dims, rope.scale
            struct.inverse_frequencies = self._floats(
                np.array(rope.inverse_frequencies, np.float32)
            )
        model.ropes, model.rope_count = ropes, len(spec.ropes)
        self._kept.append(ropes)
        if spec.temperature_beta:
            count = spec.context // spec.temperature_length + 1
            values = [1 + spec.temperature_beta * math.log(1 + i) for i in range(count)]
            model.temperatures = self._floats(np.array(values, np.float32))
            model.temperature_length, model.temperature_count = spec.temperature_length, count

    def _floats(self, values: NDArray[np.float32]) -> Any:
        """A pointer to an array that is kept as long as the decoder."""
        self._kept.append(values)
        return values.ctypes.data_as(floats)

    def _identity(self) -> str:
        """A digest of all that decides the results: the knobs, the packed weights, the vectors."""
        bare = replace(self.spec, architecture="", matrices=(), notes=(), context=0)
        digest = hashlib.sha256(repr(bare).encode())
        digest.update(np.array(self._packer.digests, np.uint64).tobytes())
        for kept in self._kept:
            if isinstance(kept, np.ndarray):
                digest.update(kept.tobytes())
        return digest.hexdigest()


_ARRAYS = ("token_ids", "past", "begins", "blocks", "block_begins", "wanted_rows")


def _plain(spec: DecoderSpec) -> ModelStruct:
    """The knobs that are numbers."""
    experts = spec.experts
    model = ModelStruct(
        **{name: getattr(spec, name) for name in _SAME},
        activation=ACTIVATIONS[spec.activation],
        expert_scale=1.0,
    )
    if experts is not None:
        model.experts, model.experts_used = experts.count, experts.used
        model.gating = SOFTMAX_THEN_TOP if experts.softmax_first else TOP_THEN_SOFTMAX
        model.renormalise, model.expert_scale = int(experts.renormalise), experts.scale
    return model


_SAME = (
    "hidden", "layers", "heads", "kv_heads", "head_dim", "vocab", "norm_epsilon", "embedding_scale",
    "residual_scale", "logit_scale", "logit_soft_cap", "attention_scale", "attention_soft_cap",
    "clip_alpha", "clip_limit",
)  # fmt: skip


def load_decoder(
    path: Path,
    library: Path,
    *,
    context: int,
    threads: int,
    level: str | None = None,
    exact: bool = False,
    progress: LoadProgress | None = None,
) -> Decoder:
    """The decoder of a GGUF file or a folder of safetensors, its weights packed.

    `library`: the kernel (`kernel/build.py`). `context`: the most tokens of a sequence that will be
    served. `level`: an instruction set's name, the best where None. `exact`: activations stay
    float32, for tests. `progress` is called with the part of the weights that is packed.
    Raises: ModelError, EngineError.
    """
    described = open_model(path)
    try:
        return Decoder(
            described,
            Library(library),
            context=context,
            threads=threads,
            level=level,
            exact=exact,
            progress=progress,
        )
    finally:
        described.source.mapped.close()
