"""The plan: against figures of real machines, and what must hold for any shape."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.errors import EngineError
from maestrale.models.architecture import CPU_TYPES, VLLM_TYPES, Architecture, from_config
from maestrale.models.catalog import find_model
from maestrale.models.fit import FitPlan, GpuOptions, advice, plan_gpu, sequence_bytes
from maestrale.models.fit_cpu import BLOCK, block_bytes, cache_size, plan_cpu
from maestrale.models.gpus import MIB, TABLE, Gpu, find_gpu

GIB = 1 << 30


def shape_of(name: str) -> Architecture:
    known = find_model(name)
    assert known is not None
    return known.architecture


MISTRAL = shape_of("mistralai/Mistral-7B-Instruct-v0.2")
TODAY = GpuOptions()


def a5000(options: GpuOptions = TODAY, dtype: str = "bf16") -> FitPlan:
    return plan_gpu("m", MISTRAL, TABLE["A5000"], options, VLLM_TYPES[dtype])


@pytest.mark.parametrize("graphs", [True, False])
def test_the_gists_log_of_2024(graphs: bool) -> None:
    """1730 blocks of 16 tokens, after a prefill of all 32,768; its vLLM left out CUDA graphs."""
    plan = a5000(GpuOptions(max_num_batched_tokens=32768, cuda_graphs=graphs))
    assert plan.kv_capacity_tokens == pytest.approx(1730 * 16, rel=0.1)
    assert plan.max_context_tokens == plan.kv_capacity_tokens < 32768


def test_the_same_by_its_memory_alone() -> None:
    options = GpuOptions(max_num_batched_tokens=32768)
    plan = plan_gpu("m", MISTRAL, Gpu("a GPU", 24564 * MIB), options)
    assert plan.kv_capacity_tokens == pytest.approx(1730 * 16, rel=0.1)


def test_todays_default_serves_the_whole_context_there() -> None:
    plan = a5000()
    assert plan.max_context_tokens == 32768
    assert 50_000 < plan.kv_capacity_tokens < 60_000


def test_llama_3_8b_on_an_h100() -> None:
    """vLLM's pull request 10511 shows the account of a default start of December 2024."""
    options = GpuOptions(max_num_batched_tokens=8192, max_num_seqs=256, cuda_graphs=False)
    shape = shape_of("meta-llama/Meta-Llama-3-8B-Instruct")
    plan = plan_gpu("m", shape, TABLE["H100"], options)
    terms = {term.name: -term.size for term in plan.terms}
    assert terms["weights"] == pytest.approx(14.96 * GIB, rel=0.005)
    assert terms["activations"] == pytest.approx(1.26 * GIB, rel=0.2)
    assert plan.kv_bytes == pytest.approx(53.29 * GIB, rel=0.05)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", 131_072),  # a block of 16 tokens is 2 MiB
        ("meta-llama/Llama-3.3-70B-Instruct", 327_680),
        ("Qwen/Qwen2.5-7B-Instruct", 57_344),
        ("microsoft/Phi-3.5-mini-instruct", 393_216),
    ],
)
def test_kv_bytes_of_a_token(name: str, expected: int) -> None:
    plan = plan_gpu("m", shape_of(name), TABLE["H200"], GpuOptions(tensor_parallel=2))
    assert plan.kv_bytes_per_token == expected
    halved = plan_gpu("m", shape_of(name), TABLE["H200"], GpuOptions(kv_cache_fp8=True))
    assert halved.kv_bytes_per_token == expected // 2


def test_the_terms_add_up() -> None:
    plan = a5000(GpuOptions(max_num_batched_tokens=32768))
    assert sum(term.size for term in plan.terms) == plan.kv_bytes
    assert all(term.formula for term in plan.terms)
    assert plan.kv_capacity_tokens == plan.kv_bytes // plan.kv_bytes_per_token // 16 * 16


def test_users() -> None:
    plan = a5000()
    assert int(plan.users_at(2048)) == plan.kv_capacity_tokens // 2048
    assert plan.users_at(plan.context + 1) == 0


def test_a_model_that_is_too_large_says_what_would_help() -> None:
    shape = shape_of("meta-llama/Llama-3.3-70B-Instruct")
    plans = {
        name: plan_gpu("m", shape, TABLE["A6000"], GpuOptions(), kind)
        for name, kind in VLLM_TYPES.items()
    }
    plan = plans["bf16"]
    assert not plan.fits
    assert (plan.kv_capacity_tokens, plan.max_context_tokens) == (0, 0)
    assert plan.users_at(2048) == 0
    said = " ".join(advice(plan, plans))
    assert "int4" in said
    assert "--tensor-parallel-size 4" in said
    assert plan_gpu("m", shape, TABLE["A6000"], GpuOptions(tensor_parallel=4)).fits
    assert advice(a5000(), {}) == []


def test_a_sliding_window_ends_the_growth() -> None:
    sliding = shape_of("mistralai/Mistral-7B-Instruct-v0.1")
    assert sequence_bytes(sliding, 32768, 2) == sequence_bytes(sliding, 4096, 2)
    assert sequence_bytes(MISTRAL, 4096, 2) == sequence_bytes(sliding, 4096, 2)
    small = Gpu("small", 20 << 30)
    assert plan_gpu("m", sliding, small).max_context_tokens == 32768


@given(
    memory=st.integers(1 << 30, 200 << 30),
    tokens=st.integers(1, 65536),
    split=st.sampled_from((1, 2, 4)),
    utilization=st.floats(0.1, 1.0),
)
def test_more_never_fits_less(memory: int, tokens: int, split: int, utilization: float) -> None:
    options = GpuOptions(utilization, split, max_num_batched_tokens=tokens, max_num_seqs=256)
    plan = plan_gpu("m", MISTRAL, Gpu("g", memory), options)
    larger = plan_gpu("m", MISTRAL, Gpu("g", memory + (1 << 30)), options)
    int4 = plan_gpu("m", MISTRAL, Gpu("g", memory), options, VLLM_TYPES["int4"])
    assert plan.kv_capacity_tokens <= larger.kv_capacity_tokens
    assert plan.kv_capacity_tokens <= int4.kv_capacity_tokens
    assert 0 <= plan.max_context_tokens <= plan.context
    assert plan.sequence_bytes(plan.max_context_tokens) <= max(plan.kv_bytes, 1)


def test_the_cpus_account() -> None:
    plan = plan_cpu("m", MISTRAL, 24 << 30, 1 << 30)
    assert plan.kv_bytes_per_token == 68_608  # 8 bits an element, and the scales
    assert plan.max_context_tokens == plan.kv_capacity_tokens < (1 << 30) // 68_608
    assert sum(term.size for term in plan.terms) == plan.kv_bytes
    assert any("--kv-cache-memory" in way for way in advice(plan, {}))
    assert plan_cpu("m", MISTRAL, 24 << 30, 16 << 30).max_context_tokens == 32768
    assert not plan_cpu("m", MISTRAL, 4 << 30, 1 << 30).fits
    assert not plan_cpu("m", MISTRAL, 24 << 30, 1 << 20).fits


def test_without_a_size_the_cache_holds_the_whole_context_or_what_fits() -> None:
    whole = plan_cpu("m", MISTRAL, 24 << 30)
    assert (whole.max_context_tokens, whole.kv_capacity_tokens) == (32768, 32768)
    short = plan_cpu("m", MISTRAL, 6 << 30)
    assert 0 < short.max_context_tokens == short.kv_capacity_tokens < 32768
    assert short.kv_bytes <= (6 << 30) - 4_000_000_000
    small = shape_of("smollm2-135m-instruct")
    assert plan_cpu("m", small, 8 << 30).kv_capacity_tokens > 8192  # 1 GiB, not what one needs


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"max_model_len": 40_000}, "made for at most 32768"),
        ({"max_model_len": 20_000, "cache_bytes": 1 << 30}, "--kv-cache-memory 1309MiB"),
        ({"max_model_len": 32_768, "left": 1 << 30}, "fits. Stop other programs, or lower it"),
        ({"cache_bytes": 1 << 20}, "too small"),
        ({"left": 1 << 20}, "No memory is left for the KV cache"),
    ],
)
def test_what_is_asked_for_is_given_or_refused(asked: dict[str, int], says: str) -> None:
    usual = {"context": 32768, "block_bytes": block_bytes(32, 8, 128), "left": 16 << 30}
    with pytest.raises(EngineError, match=says):
        cache_size(**(usual | asked))


def test_a_length_that_is_asked_for_gets_the_cache_it_needs() -> None:
    block = block_bytes(32, 8, 128)
    found = cache_size(context=32768, block_bytes=block, left=16 << 30, max_model_len=30_000)
    assert found.max_model_len == 30_000
    assert found.blocks * BLOCK >= 30_000


def test_sizes_by_type() -> None:
    assert VLLM_TYPES["bf16"].bytes_of(MISTRAL) == MISTRAL.parameters * 2
    # TheBloke's AWQ of this model is 4.15 GB; a Q4_0 GGUF is 4.11 GB.
    assert VLLM_TYPES["int4"].bytes_of(MISTRAL) == pytest.approx(4.15e9, rel=0.02)
    assert CPU_TYPES["int4"].bytes_of(MISTRAL) == pytest.approx(4.11e9, rel=0.02)


@pytest.mark.parametrize("name", ["A5000", "a5000", "RTX A5000", "nvidia rtx-a5000"])
def test_gpus_by_their_names(name: str) -> None:
    assert find_gpu(name) == TABLE["A5000"]
    assert find_gpu("A7000") is None


def test_every_gpu_keeps_a_little_for_its_driver() -> None:
    for gpu in TABLE.values():
        assert 0.95 < gpu.visible / gpu.memory < 1, gpu.name


def test_a_shape_from_a_config() -> None:
    config = {
        "model_type": "mistral",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "sliding_window": None,
    }
    assert from_config(config) == MISTRAL
    assert from_config({"text_config": config}) == MISTRAL
    windowed = from_config(config | {"sliding_window": 4096})
    assert windowed == shape_of("mistralai/Mistral-7B-Instruct-v0.1")
    latent = from_config(config | {"kv_lora_rank": 512, "qk_rope_head_dim": 64})
    assert latent.kv_elements == 32 * 576
