"""What /metrics tells: times that add up, tokens while they come, how answers end."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_app import CHAT, MODEL, Api, api, chat_body, make_settings

pytestmark = pytest.mark.anyio


async def scrape(server: Api) -> dict[str, float]:
    """`name{label=value,…}` without the labels that all share → value."""
    text = (await server.client.get("/metrics")).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items()
                      if key not in ("model_name", "engine")}  # fmt: skip
            if sample.name.startswith("vllm:"):
                assert sample.labels["model_name"] == MODEL
                assert sample.labels["engine"] == "0"
            inside = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
            found[f"{sample.name}{{{inside}}}" if inside else sample.name] = sample.value
    return found


async def test_the_phases_add_up_and_the_queue_is_seen() -> None:
    """Two requests, one place: the second waits for the first."""
    options = {"tokens_per_second": "100", "text": "hello"}
    async with api(options=options, max_num_seqs=1) as server:
        await asyncio.gather(*(server.chat(max_tokens=20, ignore_eos=True) for _ in range(2)))
        found = await scrape(server)
    assert found["vllm:e2e_request_latency_seconds_count"] == 2
    parts = [found[f"vllm:request_{part}_time_seconds_sum"]
             for part in ("queue", "prefill", "decode")]  # fmt: skip
    whole = found["vllm:e2e_request_latency_seconds_sum"]
    assert sum(parts) <= whole + 1e-6  # the rest is making the prompt
    assert sum(parts) == pytest.approx(whole, abs=0.2)
    assert found["vllm:request_inference_time_seconds_sum"] == pytest.approx(sum(parts[1:]))
    first_tokens = found["vllm:time_to_first_token_seconds_sum"]
    assert parts[0] + parts[1] == pytest.approx(first_tokens, abs=0.2)
    assert parts[0] > 0.15  # the second waited for some 20 tokens of the first
    assert parts[0] < first_tokens
    assert found["vllm:request_params_max_tokens_sum"] == 40
    assert found["vllm:request_max_num_generation_tokens_sum"] == 40
    assert found["vllm:request_params_n_sum"] == 2


async def test_the_queue_before_the_engine_counts() -> None:
    """Its own places are few beside the engine's: requests wait in the API, and that's told."""
    async with api(options={"tokens_per_second": "50"}, max_num_seqs=1) as server:
        chats = [asyncio.create_task(server.chat(max_tokens=15, ignore_eos=True)) for _ in range(6)]
        async with asyncio.timeout(10):  # a busy machine takes its time to begin
            while (found := await scrape(server))["vllm:num_requests_waiting"] != 5:
                await asyncio.sleep(0.01)
        assert found["vllm:num_requests_running"] == 1
        assert found["vllm:num_requests_waiting_by_reason{reason=capacity}"] == 5
        await asyncio.gather(*chats)
        after = await scrape(server)
    assert after["vllm:num_requests_waiting"] == 0
    assert after["vllm:request_queue_time_seconds_sum"] > 0.3 * (1 + 2 + 3 + 4 + 5) * 0.8


async def test_tokens_count_while_they_come() -> None:
    async with api(options={"tokens_per_second": "50"}) as server:
        chat = asyncio.create_task(server.chat(max_tokens=40, ignore_eos=True))
        await asyncio.sleep(0.3)
        during = await scrape(server)
        usage = (await chat).json()["usage"]
        after = await scrape(server)
    assert 0 < during["vllm:generation_tokens_total"] < 40
    assert during["vllm:prompt_tokens_total"] == usage["prompt_tokens"]
    assert after["vllm:generation_tokens_total"] == 40
    assert after["vllm:prompt_tokens_total"] == usage["prompt_tokens"]
    assert during["vllm:request_success_total{finished_reason=length}"] == 0
    steps = after["vllm:iteration_tokens_total_sum"]
    assert steps >= usage["prompt_tokens"] + 39
    assert after["vllm:iteration_tokens_total_count"] >= 40
    assert after["vllm:iteration_tokens_total_bucket{le=1.0}"] >= 39


async def test_thoughts_are_counted_among_the_tokens() -> None:
    async with api(options={"text": "<think>Hm.</think>Yes."}, thinks=True) as server:
        before = await scrape(server)
        usage = (await server.chat(n=2)).json()["usage"]
        after = await scrape(server)
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert before["maestrale_reasoning_tokens_total"] == 0
    assert after["maestrale_reasoning_tokens_total"] == thought > 6
    assert after["vllm:generation_tokens_total"] == usage["completion_tokens"] > thought


async def test_how_answers_end() -> None:
    async with api(options={"text": "hello"}) as server:
        await server.chat(n=3)
        await server.chat(max_tokens=1)
        found = await scrape(server)
        reasons = {
            reason: found[f"vllm:request_success_total{{finished_reason={reason}}}"]
            for reason in ("stop", "length", "abort", "error")
        }
    assert reasons == {"stop": 3, "length": 1, "abort": 0, "error": 0}


async def test_who_leaves_is_an_abort_and_a_dead_engine_an_error() -> None:
    async with api(options={"tokens_per_second": "50"}, over_http=True) as server:
        body = chat_body(stream=True, max_tokens=1000, ignore_eos=True)
        async with server.client.stream("POST", CHAT, json=body) as answer:
            await anext(answer.aiter_lines())
        await server.idle()
        await asyncio.sleep(0.05)
        found = await scrape(server)
        assert found["vllm:request_success_total{finished_reason=abort}"] == 1
        assert found["vllm:e2e_request_latency_seconds_count"] == 0
        assert found["vllm:time_to_first_token_seconds_count"] == 1
    async with api(options={"lose_at_token": "2"}) as server:
        await server.chat()
        found = await scrape(server)
        assert found["vllm:request_success_total{finished_reason=error}"] == 1


async def test_a_full_queue_is_a_rejection_and_no_answer() -> None:
    settings = make_settings(max_waiting=0)
    options = {"tokens_per_second": "50"}
    async with api(settings, options=options, max_num_seqs=1) as server:
        assert (await scrape(server))["maestrale_rejected_requests_total{reason=queue_full}"] == 0
        first = asyncio.create_task(server.chat(max_tokens=20, ignore_eos=True))
        await asyncio.sleep(0.1)
        assert (await server.chat()).status_code == 503
        await first
        found = await scrape(server)
    assert found["maestrale_rejected_requests_total{reason=queue_full}"] == 1
    assert found["vllm:request_success_total{finished_reason=error}"] == 0


async def test_http_is_counted_by_route_and_probes_are_not() -> None:
    async with api() as server:
        await server.chat(max_tokens=1)
        await server.chat(temperature=-1)
        for path in ("/health", "/nothing/here", "/nothing/there", f"/v1/models/{MODEL}"):
            await server.client.get(path)
        found = await scrape(server)
    chats = "handler=/v1/chat/completions,method=POST"
    assert found[f"http_requests_total{{{chats},status=2xx}}"] == 1
    assert found[f"http_requests_total{{{chats},status=4xx}}"] == 1
    assert found[f"http_request_duration_seconds_count{{{chats}}}"] == 2
    assert found["http_requests_total{handler=none,method=GET,status=4xx}"] == 2
    assert any(name.startswith("http_requests_total{handler=/v1/models/{") for name in found)
    assert not any("/health" in name or "/metrics" in name for name in found)


async def test_older_names_tell_the_same() -> None:
    async with api(options={"text": "hello"}) as server:
        await server.chat()
        found = await scrape(server)
    newer = {name: value for name, value in found.items() if "inter_token_latency" in name}
    assert newer["vllm:inter_token_latency_seconds_count"] == 5
    for name, value in newer.items():
        if not name.endswith("_created"):
            older = name.replace("inter_token_latency", "time_per_output_token")
            assert found[older] == value
    assert found["vllm:gpu_cache_usage_perc"] == found["vllm:kv_cache_usage_perc"]
    assert found["vllm:gpu_prefix_cache_hits_total"] == found["vllm:prefix_cache_hits_total"]


async def test_the_process_and_the_engine_are_told() -> None:
    async with api() as server:
        found = await scrape(server)
    assert found["maestrale_engine_up"] == 1
    assert found["vllm:engine_sleep_state{sleep_state=awake}"] == 1
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_start_time_seconds"] > 1e9
    info = next(name for name in found if name.startswith("maestrale_engine_info{"))
    assert "kind=scripted" in info
    assert any("num_gpu_blocks=65536" in name for name in found if "cache_config_info" in name)
