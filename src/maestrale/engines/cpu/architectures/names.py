"""Names of tensors → roles, in GGUF files and in Hugging Face's folders.

One name for one role is the rule of both formats; a family gives what differs from it. Whatever
layout a tensor has (queries, keys and values in one, gate and up in one, experts in one or each by
itself) is found here, so that the kernel sees one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maestrale.engines.cpu.spec import DecoderSpec
from maestrale.engines.cpu.weights.roles import LayerRoles, Roles, Rows, Vector
from maestrale.engines.cpu.weights.source import Source

# role → its name in a layer. Fused ones are looked for where the single ones are missing.
GGUF = {
    "attention_norm": "attn_norm",
    "post_attention_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "post_mlp_norm": "post_ffw_norm",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "query_key_value": "attn_qkv",
    "output": "attn_output",
    "sinks": "attn_sinks.weight",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "gate_up": "ffn_up",  # where there is no gate
    "router": "ffn_gate_inp",
    "experts_gate": "ffn_gate_exps",
    "experts_up": "ffn_up_exps",
    "experts_gate_up": "ffn_gate_up_exps",
    "experts_down": "ffn_down_exps",
    "expert_gate": "ffn_gate.{}",
    "expert_up": "ffn_up.{}",
    "expert_down": "ffn_down.{}",
}
FOLDER = {
    "attention_norm": "input_layernorm",
    "post_attention_norm": "",
    "mlp_norm": "post_attention_layernorm",
    "post_mlp_norm": "",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_key_value": "self_attn.qkv_proj",
    "output": "self_attn.o_proj",
    "sinks": "self_attn.sinks",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "gate_up": "mlp.gate_up_proj",
    "router": "mlp.gate",
    "experts_gate_up": "mlp.experts.gate_up_proj",
    "experts_down": "mlp.experts.down_proj",
    "expert_gate": "mlp.experts.{}.gate_proj",
    "expert_up": "mlp.experts.{}.up_proj",
    "expert_down": "mlp.experts.{}.down_proj",
}
NORMS = ("attention_norm", "mlp_norm")
HEAD_NORMS = ("query_norm", "key_norm")
QKV_BIASES = ("query", "key", "value")


@dataclass(frozen=True)
class Naming:
    """How a family's tensors are called, and what of them there must be or may be.

    `names`: the roles of one layer. `norms` must be there, the biases of `biases`, too; those of
    `optional_biases` may be. `add`: to the gains of norms (Gemma's are 1 less than what is
    multiplied). `interleaved`: heads of queries and keys have their halves interleaved.
    `gate_up_interleaved`: rows of gate and up take turns in a fused tensor of experts.
    """

    layer: str
    top: Mapping[str, str]
    names: Mapping[str, str]
    norms: tuple[str, ...] = NORMS
    biases: tuple[str, ...] = ()
    optional_biases: tuple[str, ...] = ()
    add: float = 0.0
    interleaved: bool = False
    gate_up_interleaved: bool = False
    experts_transposed: bool = False
    sinks: bool = False
    ignored: tuple[str, ...] = field(default=())


def gguf_naming(names: Mapping[str, str] | None = None, **more: Any) -> Naming:
    """GGUF's naming, with what a family has of its own."""
    top = {"embedding": "token_embd", "final_norm": "output_norm", "logits": "output"}
    ignored = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
    return Naming("blk.{}.", top, {**GGUF, **(names or {})}, ignored=ignored, **more)


def folder_naming(
    names: Mapping[str, str] | None = None, ignored: tuple[str, ...] = (), **more: Any
) -> Naming:
    """Hugging Face's naming, with what a family has of its own."""
    top = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "logits": "lm_head"}
    inverse = ("rotary_emb.inv_freq",)  # tables that older versions saved
    return Naming(
        "model.layers.{}.", top, {**FOLDER, **(names or {})}, ignored=inverse + ignored, **more
    )


def find_roles(source: Source, spec: DecoderSpec, naming: Naming) -> Roles:
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

    def __init__(self, source: Source, spec: DecoderSpec, naming: Naming, number: int) -> None:
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
        from maestrale.engines.cpu.architectures.experts import find_experts

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


def left_over(source: Source, naming: Naming) -> list[str]:
    """The tensors that nothing uses and that nobody said may be left out."""
    return sorted(
        name
        for name in source.tensors
        if name not in source.used and not any(part in name for part in naming.ignored)
    )
