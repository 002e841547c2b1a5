"""`plan` tells what `serve` then does, for models of several kinds that memory cuts short."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from memory_group import memory_group
from serving import clean_environment, serving
from sized_models import Sized, write_sized

pytestmark = pytest.mark.slow
GEMMA_NORMS = (
    ("post_attention_norm", 0),
    ("post_ffw_norm", 0),
    ("attn_q_norm", 256),
    ("attn_k_norm", 256),
)
# Ratios as those of models that are used; less deep and wide.
MODELS = {
    "grouped heads": Sized(
        architecture="llama", layers=16, hidden=1024, feed_forward=3584, heads=16, kv_heads=4,
        width=64, context=1 << 20,
    ),
    "heads of their own": Sized(
        architecture="llama", layers=12, hidden=1024, feed_forward=2752, heads=8, kv_heads=8,
        width=128, context=1 << 18,
    ),
    "wide heads": Sized(
        architecture="llama", layers=12, hidden=1280, feed_forward=3584, heads=8, kv_heads=2,
        width=256, context=1 << 20,
    ),
    "windows": Sized(
        architecture="gemma3", layers=18, hidden=640, feed_forward=2048, heads=4, kv_heads=1,
        width=256, context=1 << 20, window=512, norms=GEMMA_NORMS, tied=True,
    ),
    "experts": Sized(
        architecture="llama", layers=8, hidden=1024, feed_forward=1792, heads=16, kv_heads=4,
        width=64, context=1 << 20, experts=8, used=2,
    ),
}  # fmt: skip
LIMIT = 2 << 30
WITHIN = 0.05


def planned(model: Path, within: tuple[str, ...], *flags: str) -> dict[str, Any]:
    done = subprocess.run(
        [*within, sys.executable, "-m", "maestrale", "plan", str(model), "--cpu", "--json", *flags],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize("name", MODELS)
def test_the_context_and_the_cache_are_those_that_were_planned(
    name: str, tmp_path: Path, cache_dir: Path, prepared_model: Path
) -> None:
    del prepared_model  # with it the kernel is there
    model = write_sized(tmp_path / "model.gguf", MODELS[name])
    with memory_group(LIMIT) as within:
        plan = planned(model, within)
        with serving("--model", str(model), cache_dir=cache_dir, within=within) as server:
            card = httpx.get(f"{server.url}/v1/models").json()["data"][0]
            metrics = httpx.get(f"{server.url}/metrics").text
            taken = server.resident_bytes()
    served, cached = card["max_model_len"], capacity(metrics)
    assert served < MODELS[name].context, "the limit must cut it short"
    assert plan["max_context_tokens"] == pytest.approx(served, rel=WITHIN)
    assert plan["kv_capacity_tokens"] == pytest.approx(cached, rel=WITHIN)
    assert plan["kv_cache_bytes"] == pytest.approx(cached * plan["kv_bytes_per_token"], rel=WITHIN)
    # Of the cache only what was used is taken yet.
    assert plan["weights_bytes"] < taken < plan["weights_bytes"] + (400 << 20)


def capacity(metrics: str) -> int:
    """Tokens in the KV cache."""
    line = next(line for line in metrics.splitlines() if line.startswith("vllm:cache_config_info"))
    found = dict(re.findall(r'(\w+)="([^"]*)"', line))
    return int(found["num_gpu_blocks"]) * int(found["block_size"])
