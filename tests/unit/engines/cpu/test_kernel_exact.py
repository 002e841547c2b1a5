"""The exact mode of every knob against a decoder in float64 that is written here, and the rounding
of the fast levels against the exact mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernel_models import (
    CLIPPED_SWIGLU,
    GELU_TANH,
    SCALAR,
    SOFTMAX_THEN_TOP,
    SPECS,
    TOP_THEN_SOFTMAX,
    Decoder,
    Floats,
    Part,
    Spec,
    Weights,
    pool,
    random_weights,
)

Doubles = np.ndarray[Any, np.dtype[np.float64]]
BLOCKS = (3, 1, 2)


def softmax(x: Doubles) -> Doubles:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


class Reference:
    """One sequence, whole, in the plain way."""

    def __init__(self, weights: Weights, matrices: dict[str, Floats]) -> None:
        self.spec = weights.spec
        self.matrices = {name: value.astype(np.float64) for name, value in matrices.items()}
        self.tables = {name: value.astype(np.float64) for name, value in weights.tables.items()}

    def logits(self, tokens: Sequence[int]) -> Doubles:
        spec = self.spec
        x = self.matrices["embedding"][list(tokens)] * spec.embedding_scale
        for i in range(spec.layers):
            attended = self.attention(i, self.norm(f"{i}.attention_norm", x))
            attended = self.norm(f"{i}.post_attention_norm", attended)
            x = x + spec.residual_scale * attended
            inner = self.mlp(i, self.norm(f"{i}.mlp_norm", x))
            x = x + spec.residual_scale * self.norm(f"{i}.post_mlp_norm", inner)
        head = self.matrices["embedding" if spec.tied else "logits"]
        logits = self.norm("final_norm", x) @ head.T + self.tables.get("logits_bias", 0.0)
        logits = logits * spec.logit_scale
        cap = spec.logit_soft_cap
        return np.asarray(cap * np.tanh(logits / cap) if cap else logits)

    def norm(self, name: str, x: Doubles) -> Doubles:
        gain = self.tables.get(name)
        if gain is None:
            return x
        mean = (x * x).mean(axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + self.spec.epsilon) * gain)

    def product(self, name: str, x: Doubles) -> Doubles:
        return np.asarray(x @ self.matrices[name].T + self.tables.get(f"{name}_bias", 0.0))

    def attention(self, i: int, x: Doubles) -> Doubles:
        spec, count = self.spec, len(x)
        query, key = self.product(f"{i}.query", x), self.product(f"{i}.key", x)
        value = self.product(f"{i}.value", x).reshape(count, spec.kv_heads, -1)
        if spec.whole_head_norm:
            query, key = self.norm(f"{i}.query_norm", query), self.norm(f"{i}.key_norm", key)
        query = query.reshape(count, spec.heads, -1)
        key = key.reshape(count, spec.kv_heads, -1)
        if not spec.whole_head_norm:
            query, key = self.norm(f"{i}.query_norm", query), self.norm(f"{i}.key_norm", key)
        if spec.rope_of[i] >= 0:
            query, key = self.rotated(i, query), self.rotated(i, key)
        positions = np.arange(count)
        if spec.temperatures:
            last = len(spec.temperatures) - 1
            factors = self.tables["temperatures"][
                np.minimum(positions // spec.temperature_length, last)
            ]
            query = query * factors[:, None, None]
        group = spec.heads // spec.kv_heads
        key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", query, key) * spec.attention_scale
        if cap := spec.attention_soft_cap:
            scores = cap * np.tanh(scores / cap)
        distance = positions[:, None] - positions[None, :]
        window = spec.windows[i] or count
        scores = np.where((distance >= 0) & (distance < window), scores, -np.inf)
        if spec.sinks:
            sinks = np.broadcast_to(
                self.tables[f"{i}.sinks"][:, None, None], (spec.heads, count, 1)
            )
            scores = np.concatenate([scores, sinks], axis=-1)
        odds = softmax(scores)[:, :, :count]
        return self.product(
            f"{i}.output", np.einsum("hqk,khd->qhd", odds, value).reshape(count, -1)
        )

    def rotated(self, i: int, x: Doubles) -> Doubles:
        rope = self.spec.rope_of[i]
        half = self.spec.rope_dims[rope] // 2
        angles = np.arange(len(x))[:, None] * self.tables[f"rope{rope}"][None, :]
        cosines = np.cos(angles)[:, None, :] * self.spec.rope_scale
        sines = np.sin(angles)[:, None, :] * self.spec.rope_scale
        first, second = x[..., :half], x[..., half : 2 * half]
        turned = [first * cosines - second * sines, second * cosines + first * sines]
        return np.concatenate([*turned, x[..., 2 * half :]], axis=-1)

    def activated(self, gate: Doubles, up: Doubles) -> Doubles:
        spec = self.spec
        if spec.activation == GELU_TANH:
            inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
            return np.asarray(0.5 * gate * (1 + np.tanh(inner)) * up)
        if spec.activation == CLIPPED_SWIGLU:
            gate = np.minimum(gate, spec.clip_limit)
            up = np.clip(up, -spec.clip_limit, spec.clip_limit)
            return np.asarray((up + 1) * gate / (1 + np.exp(-spec.clip_alpha * gate)))
        return np.asarray(gate / (1 + np.exp(-gate)) * up)

    def mlp(self, i: int, x: Doubles) -> Doubles:
        spec, result = self.spec, np.zeros_like(x)
        if not spec.experts or spec.shared_expert:
            inner = self.activated(self.product(f"{i}.gate", x), self.product(f"{i}.up", x))
            result = self.product(f"{i}.down", inner)
        if spec.shared_router:
            result = result / (1 + np.exp(-(x @ self.tables[f"{i}.shared_router"])))[:, None]
        if not spec.experts:
            return result
        scores = x @ self.tables[f"{i}.router"].T + self.tables.get(f"{i}.router_bias", 0.0)
        if spec.gating == SOFTMAX_THEN_TOP:
            scores = softmax(scores)
        for row, of_row in enumerate(scores):
            used = np.argsort(-of_row)[: spec.experts_used]
            odds = of_row[used]
            if spec.gating == TOP_THEN_SOFTMAX:
                odds = softmax(odds)
            if spec.renormalise:
                odds = odds / odds.sum()
            for expert, odd in zip(used, odds, strict=True):
                result[row] += spec.expert_scale * odd * self.expert(i, int(expert), x[row])
        return result

    def expert(self, i: int, expert: int, x: Doubles) -> Doubles:
        def product(name: str, x: Doubles) -> Doubles:
            bias = self.tables.get(f"{i}.expert_{name}_bias")
            given = x @ self.matrices[f"{i}.expert_{name}.{expert}"].T
            return np.asarray(given if bias is None else given + bias[expert])

        return product("down", self.activated(product("gate", x), product("up", x)))


def tokens_of(spec: Spec, count: int) -> list[int]:
    return np.random.default_rng(5).integers(0, spec.vocab, count).tolist()


@pytest.mark.parametrize("name", SPECS)
def test_the_exact_mode_is_what_float64_gives(name: str) -> None:
    weights = random_weights(SPECS[name])
    tokens = tokens_of(weights.spec, 70)
    with pool(2) as opened, Decoder(opened, weights, SCALAR, exact=True) as decoder:
        logits, _ = decoder.step([Part(tokens[:33], 0, BLOCKS), Part(tokens[:5], 0, (9,))])
        rest, _ = decoder.step([Part(tokens[33:], 33, BLOCKS)])
        expected = Reference(weights, decoder.unpacked()).logits(tokens)
    np.testing.assert_allclose(np.concatenate([logits[:33], rest]), expected, atol=2e-4, rtol=1e-5)


def rounding(weights: Weights, tokens: list[int], blocks: Sequence[int]) -> float:
    """How far the scalar level's logits are from the exact ones, relative to these."""
    with pool(2) as opened:
        with Decoder(opened, weights, SCALAR, exact=True) as decoder:
            exact, _ = decoder.step([Part(tokens, 0, blocks)])
        with Decoder(opened, weights, SCALAR) as decoder:
            rounded, _ = decoder.step([Part(tokens, 0, blocks)])
    return float(np.abs(rounded - exact).mean() / np.abs(exact).mean())


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if not spec.experts])
def test_rounding_to_8_bits_stays_small(name: str) -> None:
    """Without experts, of which a rounding may choose another."""
    weights = random_weights(SPECS[name])
    assert rounding(weights, tokens_of(weights.spec, 70), BLOCKS) < 0.04


def test_it_stays_small_over_several_spans_and_windows() -> None:
    spec = replace(SPECS["sinks"], windows=(0, 300), vocab=32)
    assert rounding(random_weights(spec), tokens_of(spec, 900), range(3, 32)) < 0.04


def test_a_single_expert_is_a_dense_mlp() -> None:
    """So the experts' own path is rounded as finely as the other."""
    spec = SPECS["llama"]
    dense = random_weights(spec)
    made = {**dense.matrices}
    for i in range(spec.layers):
        for part in ("gate", "up", "down"):
            made[f"{i}.expert_{part}.0"] = made.pop(f"{i}.{part}")
    routed = random_weights(replace(spec, experts=1, experts_used=1, renormalise=True))
    tables = {**routed.tables, **dense.tables}
    tokens = tokens_of(spec, 40)
    with pool(2) as opened:
        with Decoder(opened, dense, SCALAR) as decoder:
            expected, _ = decoder.step([Part(tokens, 0, BLOCKS)])
        with Decoder(opened, Weights(routed.spec, made, tables), SCALAR) as decoder:
            logits, _ = decoder.step([Part(tokens, 0, BLOCKS)])
    assert (logits == expected).all()
