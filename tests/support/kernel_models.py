"""The kernel's library through ctypes, and tiny random models for it, of every knob."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_float, c_void_p
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from maestrale.config.paths import default_cache_dir
from maestrale.engines.cpu.kernel.build import library
from maestrale.engines.cpu.library import (
    BatchStruct,
    LayerStruct,
    Library,
    ModelStruct,
    RopeStruct,
)

SCALAR, AVX2, AVX512, AMX, NEON, I8MM = range(6)
SILU, GELU_TANH, CLIPPED_SWIGLU = range(3)
SOFTMAX_THEN_TOP, TOP_THEN_SOFTMAX = range(2)
F32, Q4_0, Q8_0 = 0, 2, 8
BLOCK = 32

Floats = np.ndarray[Any, np.dtype[np.float32]]
floats = POINTER(c_float)


def silent(phase: str, fraction: float | None) -> None:
    pass


@functools.cache
def kernel(file: Path | None = None) -> Any:
    """The library, compiled where it isn't yet; or the one in `file`."""
    return Library(file or library(default_cache_dir(), silent))


def levels() -> list[int]:
    """Those that this CPU runs, but for the scalar one."""
    return [level for level in range(1, 6) if kernel().mst_has_level(level)]


class KernelError(Exception):
    """What the kernel says when it refuses."""


def _checked(result: Any, error: Any) -> Any:
    if result is None or (isinstance(result, int) and result < 0):
        raise KernelError(error.value.decode())
    return result


@contextmanager
def pool(threads: int) -> Iterator[int]:
    error = ctypes.create_string_buffer(512)
    opened = _checked(kernel().mst_pool_open(threads, error, 512), error)
    try:
        yield opened
    finally:
        kernel().mst_pool_close(opened)


@dataclass(frozen=True)
class Spec:
    """A decoder's shape and knobs, as `mst_model` has them."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 96
    vocab: int = 80
    epsilon: float = 1e-5
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float = 0.0
    attention_scale: float = 0.2
    attention_soft_cap: float = 0.0
    temperatures: tuple[float, ...] = ()
    temperature_length: int = 0
    activation: int = SILU
    clip_alpha: float = 1.702
    clip_limit: float = 7.0
    experts: int = 0
    experts_used: int = 0
    gating: int = SOFTMAX_THEN_TOP
    renormalise: bool = False
    expert_scale: float = 1.0
    shared_expert: bool = False
    shared_router: bool = False
    router_bias: bool = False
    rope_dims: tuple[int, ...] = (32,)
    rope_scale: float = 1.0
    rope_of: tuple[int, ...] = (0, 0)
    windows: tuple[int, ...] = (0, 0)
    pre_norms: bool = True
    post_norms: bool = False
    head_norms: bool = False
    whole_head_norm: bool = False
    attention_biases: bool = False
    output_bias: bool = False
    mlp_biases: bool = False
    logits_bias: bool = False
    sinks: bool = False
    tied: bool = True


@dataclass
class Weights:
    """Random values of a spec, by name; of layers and experts with their number."""

    spec: Spec
    matrices: dict[str, Floats] = field(default_factory=dict)
    tables: dict[str, Floats] = field(default_factory=dict)


def random_weights(spec: Spec, seed: int = 0) -> Weights:
    random = np.random.default_rng(seed)
    made = Weights(spec)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.normal(0, 1.2 / columns**0.5, (rows, columns))
        made.matrices[name] = values.astype(np.float32)

    def table(name: str, *shape: int, around: float = 0.0, spread: float = 0.3) -> None:
        made.tables[name] = (around + random.normal(0, spread, shape)).astype(np.float32)

    matrix("embedding", spec.vocab, spec.hidden)
    made.matrices["embedding"] *= np.float32(spec.hidden**0.5)
    if not spec.tied:
        matrix("logits", spec.vocab, spec.hidden)
    if spec.logits_bias:
        table("logits_bias", spec.vocab)
    table("final_norm", spec.hidden, around=1.0)
    for i, dims in enumerate(spec.rope_dims):
        theta = 10000.0 * (i + 1)
        made.tables[f"rope{i}"] = (theta ** -(np.arange(0, dims, 2) / dims)).astype(np.float32)
    if spec.temperatures:
        made.tables["temperatures"] = np.array(spec.temperatures, np.float32)
    queries, kept = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    for i in range(spec.layers):
        matrix(f"{i}.query", queries, spec.hidden)
        matrix(f"{i}.key", kept, spec.hidden)
        matrix(f"{i}.value", kept, spec.hidden)
        matrix(f"{i}.output", spec.hidden, queries)
        for name, wanted in (
            *((name, spec.pre_norms) for name in ("attention_norm", "mlp_norm")),
            *((name, spec.post_norms) for name in ("post_attention_norm", "post_mlp_norm")),
        ):
            if wanted:
                table(f"{i}.{name}", spec.hidden, around=1.0)
        if spec.head_norms:
            whole = spec.whole_head_norm
            table(f"{i}.query_norm", queries if whole else spec.head_dim, around=1.0)
            table(f"{i}.key_norm", kept if whole else spec.head_dim, around=1.0)
        if spec.attention_biases:
            for name, width in (("query", queries), ("key", kept), ("value", kept)):
                table(f"{i}.{name}_bias", width)
        if spec.output_bias:
            table(f"{i}.output_bias", spec.hidden)
        if spec.sinks:
            table(f"{i}.sinks", spec.heads, spread=1.0)
        if not spec.experts or spec.shared_expert:
            matrix(f"{i}.gate", spec.mlp, spec.hidden)
            matrix(f"{i}.up", spec.mlp, spec.hidden)
            matrix(f"{i}.down", spec.hidden, spec.mlp)
            if spec.mlp_biases:
                table(f"{i}.gate_bias", spec.mlp)
                table(f"{i}.up_bias", spec.mlp)
                table(f"{i}.down_bias", spec.hidden)
        if spec.shared_router:
            table(f"{i}.shared_router", spec.hidden)
        if spec.experts:
            table(f"{i}.router", spec.experts, spec.hidden)
            if spec.router_bias:
                table(f"{i}.router_bias", spec.experts)
            if spec.mlp_biases:
                table(f"{i}.expert_gate_bias", spec.experts, spec.mlp)
                table(f"{i}.expert_up_bias", spec.experts, spec.mlp)
                table(f"{i}.expert_down_bias", spec.experts, spec.hidden)
            for k in range(spec.experts):
                matrix(f"{i}.expert_gate.{k}", spec.mlp, spec.hidden)
                matrix(f"{i}.expert_up.{k}", spec.mlp, spec.hidden)
                matrix(f"{i}.expert_down.{k}", spec.hidden, spec.mlp)
    return made


@dataclass
class Part:
    """Tokens of a sequence that a step computes, behind `past` others, in `blocks`."""

    tokens: Sequence[int]
    past: int
    blocks: Sequence[int]


class Decoder:
    """Packs weights (F32: rounded to 8 bits) and opens a decoder over them."""

    def __init__(
        self, pool: int, weights: Weights, level: int, *, exact: bool = False, blocks: int = 64
    ) -> None:
        self.spec = weights.spec
        self._lib = kernel()
        self._error = ctypes.create_string_buffer(512)
        self._kept: list[Any] = []
        self.matrices: dict[str, int] = {}
        for name, values in weights.matrices.items():
            self.matrices[name] = self._packed(pool, values)
        self.model = self._model(weights)
        self._decoder: int | None = None
        try:
            self._decoder = _checked(
                self._lib.mst_decoder_open(
                    pool, level, ctypes.byref(self.model), int(exact), self._error, 512
                ),
                self._error,
            )
            opened = self._lib.mst_cache_open(self._decoder, blocks, self._error, 512)
            _checked(opened, self._error)
        except KernelError:
            self.close()
            raise

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._decoder is not None:
            self._lib.mst_decoder_close(self._decoder)
        for matrix in self.matrices.values():
            self._lib.mst_matrix_free(matrix)
        self.matrices = {}

    def unpacked(self) -> dict[str, Floats]:
        """The matrices as the kernel holds them."""
        result = {}
        for name, shape in self._shape_of.items():
            values = np.empty(shape, np.float32)
            self._lib.mst_matrix_unpack(
                self.matrices[name], 0, shape[0], values.ctypes.data_as(floats)
            )
            result[name] = values
        return result

    def step(
        self,
        sequences: Sequence[Part],
        rows: Sequence[int] | None = None,
        hidden_rows: int | None = None,
    ) -> tuple[Floats, Floats]:
        """Logits and hidden rows of `rows`; None: of every token. `hidden_rows`: a wrong count."""
        tokens = [token for one in sequences for token in one.tokens]
        rows = range(len(tokens)) if rows is None else rows
        begins = [0, *itertools.accumulate(len(one.tokens) for one in sequences)]
        block_begins = [0, *itertools.accumulate(len(one.blocks) for one in sequences)]
        lists = [
            np.array(values, np.int32)
            for values in (
                tokens,
                [one.past for one in sequences],
                begins,
                [block for one in sequences for block in one.blocks],
                block_begins,
                [*rows, *rows],  # the logits, and the hidden rows
            )
        ]
        pointers = [values.ctypes.data for values in lists]
        batch = BatchStruct(
            *(len(tokens), len(sequences), *pointers[:5]),
            *(2 * len(rows), pointers[5], len(rows) if hidden_rows is None else hidden_rows),
        )
        logits = np.full((len(rows), self.spec.vocab), np.nan, np.float32)
        hidden = np.full((len(rows), self.spec.hidden), np.nan, np.float32)
        done = self._lib.mst_step(
            self._decoder,
            ctypes.byref(batch),
            logits.ctypes.data,
            hidden.ctypes.data,
            self._error,
            512,
        )
        _checked(done, self._error)
        return logits, hidden

    def copy(self, source: int, target: int) -> None:
        self._lib.mst_copy_block(self._decoder, source, target)

    def _packed(self, pool: int, values: Floats) -> int:
        matrix = self._lib.mst_matrix_pack(
            pool,
            F32,
            *values.shape,
            values.ctypes.data,
            values.shape[1] * 4,
            None,
            self._error,
            512,
        )
        return int(_checked(matrix, self._error))

    def _model(self, weights: Weights) -> ModelStruct:
        spec = weights.spec
        self._shape_of = {name: values.shape for name, values in weights.matrices.items()}
        tables = {name: np.ascontiguousarray(table) for name, table in weights.tables.items()}
        self._kept.append(tables)

        def table(name: str) -> Any:
            found = tables.get(name)
            return None if found is None else found.ctypes.data_as(floats)

        layers = (LayerStruct * spec.layers)()
        for i, layer in enumerate(layers):
            for name, kind, *_ in LayerStruct._fields_:
                if kind is floats:
                    setattr(layer, name, table(f"{i}.{name}"))
                elif kind is c_void_p:
                    setattr(layer, name, self.matrices.get(f"{i}.{name}"))
            layer.whole_head_norm = spec.whole_head_norm
            layer.window = spec.windows[i]
            layer.rope = spec.rope_of[i]
            if spec.experts:
                for name in ("expert_gate", "expert_up", "expert_down"):
                    all_of = [self.matrices[f"{i}.{name}.{k}"] for k in range(spec.experts)]
                    listed = (c_void_p * spec.experts)(*all_of)
                    self._kept.append(listed)
                    setattr(layer, name, listed)
        ropes = (RopeStruct * max(len(spec.rope_dims), 1))()
        for k, dims in enumerate(spec.rope_dims):
            ropes[k] = RopeStruct(dims, spec.rope_scale, table(f"rope{k}"))
        self._kept += [layers, ropes]
        embedding = self.matrices["embedding"]
        return ModelStruct(
            hidden=spec.hidden,
            layers=spec.layers,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            vocab=spec.vocab,
            norm_epsilon=spec.epsilon,
            embedding_scale=spec.embedding_scale,
            residual_scale=spec.residual_scale,
            logit_scale=spec.logit_scale,
            logit_soft_cap=spec.logit_soft_cap,
            attention_scale=spec.attention_scale,
            attention_soft_cap=spec.attention_soft_cap,
            temperatures=table("temperatures"),
            temperature_length=spec.temperature_length,
            temperature_count=len(spec.temperatures),
            activation=spec.activation,
            clip_alpha=spec.clip_alpha,
            clip_limit=spec.clip_limit,
            experts=spec.experts,
            experts_used=spec.experts_used,
            gating=spec.gating,
            renormalise=int(spec.renormalise),
            expert_scale=spec.expert_scale,
            rope_count=len(spec.rope_dims),
            ropes=ropes,
            embedding=embedding,
            logits=embedding if spec.tied else self.matrices["logits"],
            logits_bias=table("logits_bias"),
            final_norm=table("final_norm"),
            layer=layers,
        )


LLAMA = Spec()
# One for each knob, or for knobs that belong together; names are those of the tests.
SPECS: dict[str, Spec] = {
    "llama": LLAMA,
    "one head a key": replace(LLAMA, heads=2, kv_heads=2),
    "many heads a key": replace(LLAMA, heads=8, kv_heads=1),
    "untied": replace(LLAMA, tied=False, logits_bias=True),
    "odd widths": replace(LLAMA, hidden=52, head_dim=20, mlp=44, vocab=77, rope_dims=(20,)),
    "wide heads": replace(LLAMA, head_dim=80, rope_dims=(80,)),
    "narrow heads": replace(LLAMA, head_dim=16, rope_dims=(16,)),
    "partial rope": replace(LLAMA, rope_dims=(12,), rope_scale=1.2),
    "several ropes": replace(
        LLAMA, layers=3, rope_dims=(32, 32), rope_of=(0, 1, -1), windows=(0, 0, 0)
    ),
    "windows": replace(LLAMA, layers=3, rope_of=(0, 0, 0), windows=(40, 0, 7)),
    "window of one": replace(LLAMA, windows=(1, 33)),
    "attention's soft cap": replace(LLAMA, attention_soft_cap=5.0),
    "logits' soft cap": replace(LLAMA, logit_soft_cap=3.0, logit_scale=0.7),
    "sinks": replace(LLAMA, sinks=True, windows=(20, 0)),
    "temperatures": replace(LLAMA, temperatures=(1.0, 1.3, 1.7), temperature_length=30),
    "scales": replace(LLAMA, embedding_scale=3.0, residual_scale=0.4),
    "biases": replace(LLAMA, attention_biases=True, output_bias=True, mlp_biases=True),
    "norms behind": replace(LLAMA, post_norms=True),
    "norms behind alone": replace(
        LLAMA, pre_norms=False, post_norms=True, head_norms=True, whole_head_norm=True
    ),
    "norms of heads": replace(LLAMA, head_norms=True),
    "gelu": replace(LLAMA, activation=GELU_TANH),
    "clipped": replace(LLAMA, activation=CLIPPED_SWIGLU, clip_limit=1.0, mlp_biases=True),
    "experts": replace(LLAMA, experts=5, experts_used=2, renormalise=True),
    "experts of a few": replace(
        LLAMA, experts=20, experts_used=3, gating=TOP_THEN_SOFTMAX, router_bias=True
    ),
    "experts, not renormalised": replace(LLAMA, experts=4, experts_used=2, expert_scale=2.5),
    "experts with a shared one": replace(
        LLAMA, experts=4, experts_used=1, shared_expert=True, shared_router=True
    ),
    "gpt-oss": replace(
        LLAMA,
        experts=4,
        experts_used=2,
        gating=TOP_THEN_SOFTMAX,
        router_bias=True,
        activation=CLIPPED_SWIGLU,
        mlp_biases=True,
        attention_biases=True,
        output_bias=True,
        sinks=True,
        windows=(24, 0),
    ),
    "gemma": replace(
        LLAMA,
        post_norms=True,
        head_norms=True,
        activation=GELU_TANH,
        embedding_scale=8.0,
        windows=(16, 0),
        rope_dims=(32, 32),
        rope_of=(0, 1),
        attention_soft_cap=50.0,
        logit_soft_cap=30.0,
    ),
}
