"""How tensors are named, in GGUF files and in Hugging Face's folders.

One name for one role is the rule of both formats; a family gives what differs from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
