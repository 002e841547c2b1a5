"""Where a decoder's matrices and vectors lie in a model's tensors.

The fields of `LayerRoles` are those of the kernel's `mst_layer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Rows:
    """A matrix [rows, columns]: every `step`-th row of a tensor from row `first` on.

    A tensor of experts counts as one long matrix. `heads`: the rows are those of so many heads,
    each with its halves interleaved (as GGUF has them for some families): they are put back in
    halves. `transposed`: the tensor has [columns, rows] for each expert; `first` and `step` count
    rows all the same. `scales`: of an MXFP4 tensor in safetensors, which keeps them apart.
    """

    tensor: str
    rows: int
    columns: int
    first: int = 0
    step: int = 1
    heads: int = 0
    transposed: bool = False
    scales: str = ""


@dataclass(frozen=True)
class Vector:
    """`size` elements of a tensor, every `step`-th from `first` on, and `add` to each."""

    tensor: str
    size: int
    first: int = 0
    step: int = 1
    heads: int = 0
    add: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LayerRoles:
    """One layer; what isn't there is None, and experts' are one for each expert."""

    attention_norm: Vector | None = None
    post_attention_norm: Vector | None = None
    mlp_norm: Vector | None = None
    post_mlp_norm: Vector | None = None
    query_norm: Vector | None = None
    key_norm: Vector | None = None
    query: Rows
    key: Rows
    value: Rows
    output: Rows
    query_bias: Vector | None = None
    key_bias: Vector | None = None
    value_bias: Vector | None = None
    output_bias: Vector | None = None
    sinks: Vector | None = None
    gate: Rows | None = None
    up: Rows | None = None
    down: Rows | None = None
    gate_bias: Vector | None = None
    up_bias: Vector | None = None
    down_bias: Vector | None = None
    router: Vector | None = None
    router_bias: Vector | None = None
    expert_gate: tuple[Rows, ...] = ()
    expert_up: tuple[Rows, ...] = ()
    expert_down: tuple[Rows, ...] = ()
    expert_gate_bias: Vector | None = None
    expert_up_bias: Vector | None = None
    expert_down_bias: Vector | None = None

    def matrices(self) -> Iterator[tuple[str, Rows]]:
        """(field, where it lies) of each matrix; of experts, one after the other."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Rows):
                yield field.name, value
            elif isinstance(value, tuple):
                yield from ((field.name, rows) for rows in value)

    def vectors(self) -> Iterator[tuple[str, Vector]]:
        """(field, where it lies) of each vector."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Vector):
                yield field.name, value


@dataclass(frozen=True, kw_only=True)
class Roles:
    """A whole model. `logits` is None where it is the embedding."""

    embedding: Rows
    logits: Rows | None
    logits_bias: Vector | None
    final_norm: Vector
    layers: tuple[LayerRoles, ...]

    def matrices(self) -> Iterator[Rows]:
        """Every matrix of the model, in the order in which they are packed."""
        yield self.embedding
        for layer in self.layers:
            yield from (rows for _, rows in layer.matrices())
        if self.logits is not None:
            yield self.logits

    def vectors(self) -> Iterator[Vector]:
        """Every vector of the model."""
        for layer in self.layers:
            yield from (vector for _, vector in layer.vectors())
        yield self.final_norm
        if self.logits_bias is not None:
            yield self.logits_bias
