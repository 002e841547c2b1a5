"""Every other route, and the errors that each of them can give, in the one shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api_app import JSON, MODEL, api, check_error, make_settings
from maestrale.api.app import build_app
from maestrale.api.backend import Backend

pytestmark = pytest.mark.anyio

POSTS = ["/v1/chat/completions", "/v1/completions", "/v1/fim/completions", "/v1/responses",
         "/v1/embeddings", "/v1/rerank", "/tokenize", "/detokenize"]  # fmt: skip
GETS = ["/v1/models", f"/v1/models/{MODEL}", "/health", "/version", "/load", "/metrics", "/docs",
        "/openapi.json", "/tokenizer_info"]  # fmt: skip


@pytest.mark.parametrize("path", GETS)
async def test_get(path: str) -> None:
    async with api() as server:
        assert (await server.client.get(path)).status_code == 200
        answer = await server.client.post(path, json={})
        check_error(answer, 405)
        assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("path", POSTS)
async def test_post_errors(path: str) -> None:
    async with api() as server:
        answer = await server.client.get(path)
        check_error(answer, 405)
        assert answer.headers["allow"] == "POST"
        check_error(await server.client.post(path, content=b"{", headers=JSON), 400)
        check_error(await server.client.post(path, content=b"{}"), 415)
        check_error(await server.client.post(path, json={"zork": 1}), 400, "zork")
        big = b" " * (server_limit() + 1)
        check_error(await server.client.post(path, content=big, headers=JSON), 413)


def server_limit() -> int:
    return make_settings().max_body_bytes


@pytest.mark.parametrize(
    "path", ["/web/nope", "/nope", "/v1", "/v1/models/", "/v1/chat/completions/"]
)
async def test_nothing_there(path: str) -> None:
    async with api() as server:
        check_error(await server.client.get(path), 404)


async def test_models() -> None:
    settings = make_settings(served_model_name=(MODEL, "small"))
    async with api(settings) as server:
        listed = (await server.client.get("/v1/models")).json()
        assert [card["id"] for card in listed["data"]] == [MODEL, "small"]
        for card in listed["data"]:
            assert card["type"] == "base"
            assert card["capabilities"]["completion_chat"] is True
            assert card["max_model_len"] == 4096
            assert (await server.client.get(f"/v1/models/{card['id']}")).json() == card
            assert (await server.chat(model=card["id"], max_tokens=1)).json()["model"] == MODEL
        error = check_error(await server.client.get("/v1/models/gpt-4"), 404, "model")
        assert error["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [("abc", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2)],
)
async def test_completions(prompt: Any, choices: int) -> None:
    async with api(options={"text": "hello"}) as server:
        body = {"prompt": prompt, "n": 2, "logprobs": 1}
        answer = (await server.client.post("/v1/completions", json=body)).json()
        assert answer["object"] == "text_completion"
        assert [choice["index"] for choice in answer["choices"]] == list(range(choices * 2))
        assert {choice["text"] for choice in answer["choices"]} == {"hello"}
        logprobs = answer["choices"][0]["logprobs"]
        assert logprobs["tokens"] == list("hello")
        assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
        assert answer["usage"]["completion_tokens"] == 6 * 2 * choices


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[1], "a"]}, "prompt"),
        ({"prompt": [999]}, "prompt"),
        ({"prompt": [-1]}, "prompt[...]"),
        ({"prompt": ["a"] * 1000}, "prompt"),
        ({"prompt": "a", "echo": 1}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": True}, "best_of"),
        ({"prompt": "a", "logprobs": 100}, "logprobs"),
    ],
)
async def test_bad_completions(fields: dict[str, Any], param: str) -> None:
    async with api() as server:
        answer = await server.client.post("/v1/completions", json=fields)
        error = check_error(answer, 400)
        assert error["param"].startswith(param.removesuffix("[...]"))


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 1, "echo": False, "suffix": ""},
        {"best_of": 2, "n": 2},
        {"best_of": None, "suffix": None},
    ],
)
async def test_what_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    async with api() as server:
        answer = await server.client.post("/v1/completions", json={"prompt": "a", **fields})
        assert answer.status_code == 200
        assert len(answer.json()["choices"]) == fields.get("n", 1)


async def test_tokenize_and_back() -> None:
    async with api() as server:
        answer = await server.client.post(
            "/tokenize", json={"model": MODEL, "prompt": "aé", "return_token_strs": True}
        )
        assert answer.json() == {
            "count": 3,
            "max_model_len": 4096,
            "tokens": [97, 195, 169],
            "token_strs": ["a", "bytes:\\xc3", "bytes:\\xa9"],
        }
        back = await server.client.post("/detokenize", json={"tokens": answer.json()["tokens"]})
        assert back.json() == {"prompt": "aé"}
        check_error(await server.client.post("/tokenize", json={}), 400, "prompt")
        tools = {"prompt": "a", "tools": [{"function": {"name": "f"}}]}
        check_error(await server.client.post("/tokenize", json=tools), 400, "tools")
        check_error(await server.client.post("/detokenize", json={"tokens": [257]}), 400, "tokens")
        check_error(await server.client.post("/detokenize", json={"tokens": ["a"]}), 400)


async def test_detokenize_is_bounded_by_the_context() -> None:
    async with api(max_model_len=100) as server:
        answer = await server.client.post("/detokenize", json={"tokens": [65] * 100})
        assert answer.json()["prompt"] == "A" * 100
        answer = await server.client.post("/detokenize", json={"tokens": [65] * 101})
        message = check_error(answer, 400, "tokens")["message"]
        assert "101" in message
        assert "100" in message


async def test_metrics_have_vllms_names() -> None:
    async with api(options={"text": "hello"}) as server:
        await server.chat()
        await server.chat(max_tokens=2)
        text = (await server.client.get("/metrics")).text
        labels = f'{{engine="0",model_name="{MODEL}"}}'
        assert f"vllm:prompt_tokens_total{labels} 24.0" in text
        assert f"vllm:generation_tokens_total{labels} 8.0" in text
        assert 'finished_reason="stop"' in text
        assert 'finished_reason="length"' in text
        for name in (
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
            "num_preemptions_total",
            "prefix_cache_queries_total",
            "prefix_cache_hits_total",
            "time_to_first_token_seconds_count",
            "inter_token_latency_seconds_count",
            "request_time_per_output_token_seconds_count",
            "e2e_request_latency_seconds_count",
            "request_decode_time_seconds_count",
            "request_prompt_tokens_count",
            "request_generation_tokens_count",
        ):
            assert f"vllm:{name}{{" in text, name


async def test_metrics_of_our_own() -> None:
    async with api() as server:
        for _ in range(2):
            check_error(await server.chat(temperature=-1), 400)
        check_error(await server.chat(model="gpt-5"), 404)
        check_error(await server.client.get("/nothing/here"), 404)
        text = (await server.client.get("/metrics")).text
        assert 'maestrale_rejected_requests_total{reason="invalid_value"} 2.0' in text
        assert 'maestrale_rejected_requests_total{reason="model_not_found"} 1.0' in text
        assert 'maestrale_rejected_requests_total{reason="not_found"} 1.0' in text
        assert f'maestrale_engine_restarts_total{{engine="0",model_name="{MODEL}"}} 0.0' in text
        assert f'maestrale_replayed_requests_total{{engine="0",model_name="{MODEL}"}} 0.0' in text


async def test_docs_need_neither_script_nor_network() -> None:
    async with api() as server:
        answer = await server.client.get("/docs")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        for word in ("<script", "http://cdn", "https://", "@import", "<link"):
            assert word not in answer.text
        assert "/v1/chat/completions" in answer.text
        assert "temperature" in answer.text


async def test_openapi_describes_every_route() -> None:
    async with api() as server:
        document = (await server.client.get("/openapi.json")).json()
        others = [path for path in GETS if MODEL not in path]
        pages = {"/", "/status", "/status.json", "/usage", "/usage.json"}
        messages = {"/v1/messages", "/v1/messages/count_tokens"}
        kept = {f"/v1/responses/{{response_id}}{path}" for path in ("", "/cancel", "/input_items")}
        kept.add("/v1/streams/{stream_id}")
        models = {f"/v1/models/{{model_id}}{path}" for path in ("", "/load", "/unload")}
        named = {*POSTS, *messages, *kept, *others, *pages, *models, "/ping"}
        assert set(document["paths"]) == named
        names = set(document["components"]["schemas"])
        for reference in json.dumps(document).split('"#/components/schemas/')[1:]:
            assert reference.partition('"')[0] in names


async def test_states_of_health() -> None:
    import httpx

    backend = Backend(make_settings())
    transport = httpx.ASGITransport(app=build_app(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get("/health")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["status"] == "starting"
        for path in ("/v1/models", "/v1/models/x"):
            error = check_error(await client.get(path), 503)
            assert error["code"] == "starting"
        backend.drain()
        assert (await client.get("/health")).json()["status"] == "draining"
        error = check_error(await client.post(POSTS[0], json={}), 503)
        assert error["code"] == "draining"


async def test_dead_engine() -> None:
    async with api() as server:
        await server.engine.close()
        answer = await server.client.get("/ping")
        assert answer.status_code == 503
        assert answer.json()["status"] == "dead"
        check_error(await server.chat(), 503)


async def test_request_id_is_kept_if_sane() -> None:
    async with api() as server:
        for given, kept in (("abc-1.2_3", True), ("a b", False), ("x" * 200, False)):
            answer = await server.client.get("/version", headers={"x-request-id": given})
            assert (answer.headers["x-request-id"] == given) is kept
