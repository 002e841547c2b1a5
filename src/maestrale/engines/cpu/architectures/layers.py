"""Names of tensors → roles.

Whatever layout a tensor has (queries, keys and values in one, gate and up in one, experts in one or
each by itself) is found here, so that the kernel sees one.
"""

from __future__ import annotations

from typing import Any

from maestrale.engines.cpu.architectures.experts import find_experts
from maestrale.engines.cpu.architectures.names import HEAD_NORMS, Naming
from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.roles import LayerRoles, Roles, Rows, Vector
from maestrale.engines.cpu.weights.source import WeightSource


def find_roles(source: WeightSource, spec: DecoderSpec, naming: Naming) -> Roles:
    """Where each weight lies, having checked its shape. Raises: ModelError."""
    top = {role: f"{name}.weight" for role, name in naming.top.items()}
    table = (spec.vocab, spec.hidden)
    source.matrix(top["embedding"], table)
    if naming.interleaved and any(rope.dims != spec.head_dim for rope in spec.ropes):
        raise source.keys.wrong("rope.dimension_count", f"isn't the heads' {spec.head_dim}")
    tied = spec.tied or not source.has(top["logits"])
    if tied:
        source.used.add(top["logits"])
    else:
        source.matrix(top["logits"], table)
    layers = tuple(_Layer(source, spec, naming, number).roles() for number in range(spec.layers))
    source.take(top["final_norm"], (spec.hidden,))
    bias = f"{naming.top['logits']}.bias"
    if source.has(bias):
        source.take(bias, (spec.vocab,))
    return Roles(
        embedding=Rows(top["embedding"], *table),
        logits=None if tied else Rows(top["logits"], *table),
        logits_bias=Vector(bias, spec.vocab) if source.has(bias) else None,
        final_norm=Vector(top["final_norm"], spec.hidden, add=naming.add),
        layers=layers,
    )


class _Layer:
    """One layer's roles."""

    def __init__(
        self, source: WeightSource, spec: DecoderSpec, naming: Naming, number: int
    ) -> None:
        self._source, self._spec, self._naming = source, spec, naming
        self._prefix = naming.layer.format(number)

    def roles(self) -> LayerRoles:
        spec, naming = self._spec, self._naming
        queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        found: dict[str, Any] = {role: self._norm(role) for role in naming.norms}
        found |= self._attention(queries, keys)
        output = self._name("output")
        found["output"] = self._matrix(f"{output}.weight", spec.hidden, queries)
        found["output_bias"] = self._bias("output", output, spec.hidden)
        if naming.sinks:
            name = self._name("sinks")
            self._source.take(name, (spec.heads,))
            found["sinks"] = Vector(name, spec.heads)
        found |= self._mlp() if spec.experts is None else self._experts()
        return LayerRoles(**found)

    def _attention(self, queries: int, keys: int) -> dict[str, Any]:
        spec = self._spec
        sizes = {"query": queries, "key": keys, "value": keys}
        heads = {"query": spec.heads, "key": spec.kv_heads, "value": 0}
        if not self._naming.interleaved:
            heads = dict.fromkeys(heads, 0)
        fused = self._name("query_key_value")
        found: dict[str, Any] = {}
        if self._source.has(f"{fused}.weight"):
            name, total = f"{fused}.weight", queries + 2 * keys
            self._source.matrix(name, (total, spec.hidden))
            begin = 0
            for role, size in sizes.items():
                found[role] = Rows(name, size, spec.hidden, begin, heads=heads[role])
                if self._bias(role, fused, total):
                    found[f"{role}_bias"] = Vector(f"{fused}.bias", size, begin, heads=heads[role])
                begin += size
            return found
        for role, size in sizes.items():
            name = self._name(role)
            found[role] = self._matrix(f"{name}.weight", size, spec.hidden, heads=heads[role])
            found[f"{role}_bias"] = self._bias(role, name, size, heads=heads[role])
        return found

    def _mlp(self) -> dict[str, Any]:
        hidden, width = self._spec.hidden, self._spec.mlp
        found: dict[str, Any] = {}
        gate, fused = self._name("gate"), self._name("gate_up")
        if not self._source.has(f"{gate}.weight") and self._source.has(f"{fused}.weight"):
            name = f"{fused}.weight"
            self._source.matrix(name, (2 * width, hidden))
            found["gate"] = Rows(name, width, hidden)
            found["up"] = Rows(name, width, hidden, width)
        else:
            for role in ("gate", "up"):
                name = self._name(role)
                found[role] = self._matrix(f"{name}.weight", width, hidden)
                found[f"{role}_bias"] = self._bias(role, name, width)
        name = self._name("down")
        found["down"] = self._matrix(f"{name}.weight", hidden, width)
        found["down_bias"] = self._bias("down", name, hidden)
        return found

    def _experts(self) -> dict[str, Any]:
        return find_experts(self._source, self._spec, self._naming, self._prefix)

    def _norm(self, role: str) -> Vector:
        spec = self._spec
        heads = spec.heads if role == "query_norm" else spec.kv_heads
        size = spec.hidden
        if role in HEAD_NORMS:
            size = spec.head_dim * (heads if spec.whole_head_norm else 1)
        name = f"{self._name(role)}.weight"
        self._source.take(name, (size,))
        return Vector(name, size, add=self._naming.add)

    def _matrix(self, name: str, rows: int, columns: int, heads: int = 0) -> Rows:
        self._source.matrix(name, (rows, columns))
        return Rows(name, rows, columns, heads=heads)

    def _bias(self, role: str, tensor: str, size: int, heads: int = 0) -> Vector | None:
        """A bias that must or may be there; one that may not be is left, and refused at the end."""
        name = f"{tensor}.bias"
        must = role in self._naming.biases
        if not must and (role not in self._naming.optional_biases or not self._source.has(name)):
            return None
        self._source.take(name, (size,))
        return Vector(name, size, heads=heads)

    def _name(self, role: str) -> str:
        return self._prefix + self._naming.names[role]


def left_over(source: WeightSource, naming: Naming) -> list[str]:
    """The tensors that nothing uses and that nobody said may be left out."""
    return sorted(
        name
        for name in source.tensors
        if name not in source.used and not any(part in name for part in naming.ignored)
    )
