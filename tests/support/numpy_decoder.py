"""A decoder in numpy, float32, without a cache: what a DecoderSpec means, in the plainest form.

The bridge between other implementations and the kernel: slow, and short enough to be checked by
eye.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from maestrale.engines.cpu.architectures import DescribedModel
from maestrale.engines.cpu.spec import CLIPPED_SWIGLU, SILU, DecoderSpec
from maestrale.engines.cpu.weights.mapped import MappedTensors
from maestrale.engines.cpu.weights.packing import interleaved_order, mxfp4_rows
from maestrale.engines.cpu.weights.roles import LayerRoles, Rows, Vector

Array = NDArray[np.float32]


def matrix(mapped: MappedTensors, rows: Rows) -> Array:
    """The float32 values of a matrix, as the format's own package dequantises them."""
    tensor = mapped.tensors[rows.tensor]
    raw = mapped.bytes_of(tensor)
    if rows.scales:
        packed = mxfp4_rows(raw, mapped.bytes_of(mapped.tensors[rows.scales]), rows)
        return gguf.dequantize(packed, gguf.GGMLQuantizationType.MXFP4).reshape(rows.rows, -1)
    kind = gguf.GGMLQuantizationType[tensor.type]
    table = raw.reshape(-1, len(raw) // max(int(np.prod(tensor.shape[:-1])), 1))
    values = gguf.dequantize(table, kind).astype(np.float32)
    if rows.transposed:
        values = values.reshape(tensor.shape).swapaxes(-1, -2).reshape(-1, rows.columns)
    values = values[rows.first :: rows.step][: rows.rows]
    return values[interleaved_order(rows.rows, rows.heads)] if rows.heads else values


def vector(mapped: MappedTensors, where: Vector | None) -> Array | None:
    """The values of a vector."""
    if where is None:
        return None
    values = mapped.values(mapped.tensors[where.tensor]).reshape(-1)
    values = values[where.first :: where.step][: where.size] + np.float32(where.add)
    return values[interleaved_order(where.size, where.heads)] if where.heads else values


class NumpyDecoder:
    """`logits(tokens)`: float32 [tokens, vocab]."""

    def __init__(self, described: DescribedModel, context: int | None = None) -> None:
        self.spec = described.spec.serving(context or described.spec.context)
        self._roles, self._mapped = described.roles, described.source.mapped
        self._kept: dict[Rows, Array] = {}

    def _matrix(self, rows: Rows) -> Array:
        """Its values, kept."""
        if rows not in self._kept:
            self._kept[rows] = matrix(self._mapped, rows)
        return self._kept[rows]

    def hidden(self, tokens: list[int]) -> Array:
        """What is behind the final norm, [tokens, hidden]."""
        x = self._matrix(self._roles.embedding)[tokens] * np.float32(self.spec.embedding_scale)
        for number, layer in enumerate(self._roles.layers):
            x = self._layer(x, number, layer)
        return self._norm(x, self._roles.final_norm)

    def logits(self, tokens: list[int]) -> Array:
        spec, roles = self.spec, self._roles
        head = self._matrix(roles.embedding if roles.logits is None else roles.logits)
        out = self.hidden(tokens) @ head.T
        bias = vector(self._mapped, roles.logits_bias)
        if bias is not None:
            out = out + bias
        out = out * np.float32(spec.logit_scale)
        cap = spec.logit_soft_cap
        return np.float32(cap) * np.tanh(out / np.float32(cap)) if cap else out

    def _layer(self, x: Array, number: int, layer: LayerRoles) -> Array:
        scale = np.float32(self.spec.residual_scale)
        h = self._norm(x, layer.attention_norm)
        h = self._norm(self._attention(h, number, layer), layer.post_attention_norm)
        x = x + scale * h
        h = self._norm(x, layer.mlp_norm)
        h = self._experts(h, layer) if self.spec.experts else self._mlp(h, layer)
        return x + scale * self._norm(h, layer.post_mlp_norm)

    def _attention(self, h: Array, number: int, layer: LayerRoles) -> Array:
        spec, count = self.spec, len(h)
        q = self._product(h, layer.query, layer.query_bias)
        k = self._product(h, layer.key, layer.key_bias)
        v = self._product(h, layer.value, layer.value_bias).reshape(count, spec.kv_heads, -1)
        if spec.whole_head_norm:
            q, k = self._norm(q, layer.query_norm), self._norm(k, layer.key_norm)
        q = q.reshape(count, spec.heads, spec.head_dim)
        k = k.reshape(count, spec.kv_heads, spec.head_dim)
        if not spec.whole_head_norm:
            q, k = self._norm(q, layer.query_norm), self._norm(k, layer.key_norm)
        rope = spec.layer_ropes[number]
        if rope >= 0:
            q, k = turned(q, spec, rope), turned(k, spec, rope)
        places = np.arange(count)
        if spec.temperature_beta:
            steps = places // spec.temperature_length
            q = q * (1 + spec.temperature_beta * np.log(1 + steps))[:, None, None].astype("f4")
        group = spec.heads // spec.kv_heads
        keys, values = np.repeat(k, group, 1), np.repeat(v, group, 1)
        scores = q.swapaxes(0, 1) @ keys.transpose(1, 2, 0) * np.float32(spec.attention_scale)
        if spec.attention_soft_cap:
            cap = np.float32(spec.attention_soft_cap)
            scores = cap * np.tanh(scores / cap)
        distance = places[:, None] - places[None, :]
        window = spec.windows[number]
        seen = (distance >= 0) & ((distance < window) if window else True)
        scores = np.where(seen[None], scores, -np.inf)
        sinks = vector(self._mapped, layer.sinks)
        if sinks is not None:
            extra = np.broadcast_to(sinks[:, None, None], (spec.heads, count, 1))
            scores = np.concatenate([scores, extra], 2)
        shares = softmax(scores)[..., :count]
        out = (shares @ values.swapaxes(0, 1)).swapaxes(0, 1).reshape(count, -1)
        return self._product(out, layer.output, layer.output_bias)

    def _mlp(self, h: Array, layer: LayerRoles) -> Array:
        gate = self._product(h, layer.gate, layer.gate_bias)
        up = self._product(h, layer.up, layer.up_bias)
        return self._product(self._gated(gate, up), layer.down, layer.down_bias)

    def _experts(self, h: Array, layer: LayerRoles) -> Array:
        experts = self.spec.experts
        assert experts is not None
        count, width, hidden = experts.count, experts.width, self.spec.hidden
        router = vector(self._mapped, layer.router)
        assert router is not None
        scores = h @ router.reshape(count, hidden).T
        bias = vector(self._mapped, layer.router_bias)
        scores = scores if bias is None else scores + bias
        shares = softmax(scores) if experts.softmax_first else scores
        picked = np.argsort(-shares, axis=1, kind="stable")[:, : experts.used]
        weights = np.take_along_axis(shares, picked, 1)
        if not experts.softmax_first:
            weights = softmax(weights)
        elif experts.renormalise:
            weights = weights / weights.sum(1, keepdims=True)

        def biased(where: Vector | None, number: int, size: int) -> Array | np.float32:
            values = vector(self._mapped, where)
            return np.float32(0) if values is None else values.reshape(count, size)[number]

        out = np.zeros_like(h)
        for row in range(len(h)):
            for number, weight in zip(picked[row], weights[row], strict=True):
                gate = h[row] @ self._matrix(layer.expert_gate[number]).T
                up = h[row] @ self._matrix(layer.expert_up[number]).T
                gate = gate + biased(layer.expert_gate_bias, number, width)
                up = up + biased(layer.expert_up_bias, number, width)
                down = self._gated(gate, up) @ self._matrix(layer.expert_down[number]).T
                down = down + biased(layer.expert_down_bias, number, hidden)
                out[row] += np.float32(experts.scale) * weight * down
        return out

    def _gated(self, gate: Array, up: Array) -> Array:
        spec = self.spec
        if spec.activation == CLIPPED_SWIGLU:
            gate = np.minimum(gate, spec.clip_limit)
            up = np.clip(up, -spec.clip_limit, spec.clip_limit)
            return (up + 1) * gate * sigmoid(spec.clip_alpha * gate)
        if spec.activation == SILU:
            return gate * sigmoid(gate) * up
        inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
        return (0.5 * gate * (1 + np.tanh(inner)) * up).astype(np.float32)

    def _product(self, x: Array, rows: Rows | None, bias: Vector | None) -> Array:
        assert rows is not None
        out: Array = x @ self._matrix(rows).T
        values = vector(self._mapped, bias)
        return out if values is None else out + values

    def _norm(self, x: Array, gain: Vector | None) -> Array:
        values = vector(self._mapped, gain)
        if values is None:
            return x
        mean = np.mean(x.astype(np.float64) ** 2, -1, keepdims=True)
        normed: Array = (x / np.sqrt(mean + self.spec.norm_epsilon)).astype(np.float32)
        return normed * values


def turned(x: Array, spec: DecoderSpec, number: int) -> Array:
    """Rotary embedding of [tokens, heads, head_dim]."""
    rope = spec.ropes[number]
    angles = np.arange(len(x), dtype=np.float32)[:, None] * np.array(
        rope.inverse_frequencies, np.float32
    )
    cos = (np.cos(angles) * rope.scale)[:, None].astype(np.float32)
    sin = (np.sin(angles) * rope.scale)[:, None].astype(np.float32)
    half = rope.dims // 2
    a, b, rest = x[..., :half], x[..., half : rope.dims], x[..., rope.dims :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def softmax(x: Any) -> Any:
    """Over the last axis."""
    grown = np.exp(x - x.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))
