"""POST /v1/rerank on the scripted engine, and clients' own bodies on it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_app import CHAT, JSON, MODEL, Api, api, check_error, make_settings
from hostile_bodies import BAD_JSON, BAD_MODELS, MESSAGES, REFUSED_MEDIA_TYPES
from maestrale.keys import add_key
from otlp import collector

pytestmark = pytest.mark.anyio

RERANK = "/v1/rerank"
PATHS = (RERANK, "/rerank", "/v2/rerank")
DOCUMENTS = ["Mice.", "Stones.", "Fish and mice.", "", "Mice."]


async def post(server: Api, path: str = RERANK, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "query": "What do cats eat?", "documents": DOCUMENTS, **fields}
    return await server.client.post(path, json=body)


async def results(server: Api, **fields: Any) -> list[dict[str, Any]]:
    answer = await post(server, **fields)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


async def scores(server: Api, **fields: Any) -> list[float]:
    """In the order of the documents."""
    found = await results(server, **fields)
    return [each["relevance_score"] for each in sorted(found, key=lambda each: each["index"])]


async def test_documents_come_sorted_by_their_scores() -> None:
    async with api(task="rerank") as server:
        answer = await post(server)
        body = answer.json()
        assert set(body) == {"id", "object", "created", "model", "results", "usage", "meta"}
        assert (body["object"], body["model"]) == ("list", MODEL)
        assert body["id"].startswith("rerank-")
        tokens = sum(len(f"What do cats eat??{text}") for text in DOCUMENTS)
        assert body["usage"] == {
            "prompt_tokens": tokens,
            "completion_tokens": 0,
            "total_tokens": tokens,
        }
        assert body["meta"] == {"tokens": {"input_tokens": tokens, "output_tokens": 0}}
        found = body["results"]
        assert all(set(each) == {"index", "relevance_score"} for each in found)
        assert sorted(each["index"] for each in found) == list(range(len(DOCUMENTS)))
        assert all(0 <= each["relevance_score"] <= 1 for each in found)
        ordered = [(-each["relevance_score"], each["index"]) for each in found]
        assert ordered == sorted(ordered)  # of equal ones, 0 and 4, the first comes first
        assert "x-seed" not in answer.headers


async def test_every_path_and_kind_of_document_gives_the_same() -> None:
    async with api(task="rerank") as server:
        expected = await results(server)
        objects = [{"text": text} for text in DOCUMENTS]
        for path in PATHS:
            assert await results(server, path=path) == expected
            assert await results(server, path=path, documents=objects) == expected
        mixed = [*DOCUMENTS[:2], *objects[2:]]
        assert await results(server, documents=mixed) == expected


async def test_a_score_is_the_same_alone_and_depends_on_both_texts() -> None:
    async with api(task="rerank") as server:
        together = await scores(server)
        for index, text in enumerate(DOCUMENTS):
            assert await scores(server, documents=[text]) == [together[index]]
        assert await scores(server, query="What do dogs eat?") != together


async def test_top_n_and_return_documents() -> None:
    async with api(task="rerank") as server:
        whole = await results(server)
        for top in (1, 2, len(DOCUMENTS), 1000):
            assert await results(server, top_n=top) == whole[:top]
        shown = await results(server, top_n=3, return_documents=True)
        assert shown == [
            {**each, "document": {"text": DOCUMENTS[each["index"]]}} for each in whole[:3]
        ]
        assert await results(server, return_documents=False, top_n=None) == whole


async def test_a_document_is_cut_only_where_it_is_asked_for() -> None:
    async with api(task="rerank", max_model_len=64) as server:
        cut = await scores(server, query="q", documents=["a" * 5000], max_tokens_per_doc=10)
        assert cut == await scores(server, query="q", documents=["a" * 10])
        shown = await results(
            server, documents=["a" * 99], max_tokens_per_doc=10, return_documents=True
        )
        assert shown[0]["document"] == {"text": "a" * 99}
        assert await scores(server, query="q", documents=["a" * 62])
        for documents, place in ((["b", "a" * 63], 1), (["a" * 5_000_000], 0)):
            answer = await post(server, query="q", documents=documents)
            error = check_error(answer, 400, f"documents[{place}]")
            assert error["code"] == "context_length_exceeded"
        error = check_error(await post(server, query="q" * 70, documents=["a"]), 400, "query")
        assert error["code"] == "context_length_exceeded"


async def test_more_documents_than_the_engine_and_the_queue_take_at_once() -> None:
    async with api(make_settings(max_waiting=0), task="rerank", max_num_seqs=4) as server:
        many = [f"text {number}" for number in range(100)]
        found = await scores(server, documents=many)
        assert found[70] == (await scores(server, documents=["text 70"]))[0]
        await server.idle()


async def test_what_clients_send_and_what_changes_nothing_is_taken() -> None:
    async with api(task="rerank") as server:
        plain = await results(server)
        extra: dict[str, Any] = {"user": "me", "metadata": {"a": 1}, "priority": 0}
        extra |= {"truncate_prompt_tokens": None, "use_activation": True, "truncation": False}
        extra |= {"rank_fields": None, "max_chunks_per_doc": None, "return_embeddings": False}
        assert await results(server, **extra) == plain


BAD: dict[str, tuple[dict[str, Any], str | None]] = {
    "no query": ({"query": ""}, "query"),
    "a null query": ({"query": None}, "query"),
    "a query of ids": ({"query": [1, 2]}, "query"),
    "an image for a query": ({"query": {"content": []}}, "query"),
    "no documents": ({"documents": []}, "documents"),
    "null": ({"documents": None}, "documents"),
    "one text": ({"documents": "a"}, "documents"),
    "ids": ({"documents": [1]}, None),
    "a null among them": ({"documents": ["a", None]}, None),
    "an object without text": ({"documents": [{}]}, None),
    "an object of more": ({"documents": [{"text": "a", "title": "b"}]}, None),
    "too many": ({"documents": ["a"] * 2049}, "documents"),
    "a query too long for so many": ({"query": "q" * 9000, "documents": ["a"] * 1000}, "query"),
    "nothing to tell": ({"top_n": 0}, "top_n"),
    "fewer than nothing": ({"top_n": -1}, "top_n"),
    "half of them": ({"top_n": 0.5}, "top_n"),
    "an endless count": ({"top_n": 2**63}, "top_n"),
    "documents or not": ({"return_documents": "yes"}, "return_documents"),
    "documents of no tokens": ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
    "half of a surrogate": ({"documents": ["\ud800"]}, None),
    "a stream": ({"stream": True}, "stream"),
    "a long label": ({"metadata": "a" * 70_000}, "metadata"),
    "TEI's documents": ({"texts": ["a"]}, "texts"),
    "Voyage's count": ({"top_k": 3}, "top_k"),
    "Cohere's fields": ({"rank_fields": ["title"]}, "rank_fields"),
    "Cohere's chunks": ({"max_chunks_per_doc": 10}, "max_chunks_per_doc"),
    "vLLM's cut": ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    "vLLM's raw scores": ({"use_activation": False}, "use_activation"),
    "Jina's vectors": ({"return_embeddings": True}, "return_embeddings"),
    "an instruction": ({"instruction": "Find poems."}, "instruction"),
    "an unknown field": ({"docs": ["a"]}, "docs"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_wrong_is_refused_by_name(name: str) -> None:
    fields, param = BAD[name]
    async with api(task="rerank") as server:
        body = {"model": MODEL, "query": "q", "documents": ["a"], **fields}
        answer = await server.client.post(RERANK, content=json.dumps(body), headers=JSON)
        check_error(answer, 400, param)
        assert await results(server)


@pytest.mark.parametrize("name", BAD_JSON)
async def test_bad_json(name: str) -> None:
    good = b'"query":"q","documents":["a"]'
    body = BAD_JSON[name].replace(MESSAGES.encode(), good)
    for field in (b'"temperature"', b'"seed"', b'"n"'):
        body = body.replace(field, b'"top_n"')
    async with api(make_settings(max_body_bytes=32 << 20), task="rerank") as server:
        check_error(await server.client.post(RERANK, content=body, headers=JSON), 400)
        assert await results(server)


async def test_other_models_methods_types_and_sizes_are_refused() -> None:
    async with api(make_settings(max_body_bytes=2000), task="rerank") as server:
        for model in BAD_MODELS:
            error = check_error(await post(server, model=model), 404, "model")
            assert error["code"] == "model_not_found"
        for headers in REFUSED_MEDIA_TYPES:
            check_error(await server.client.post(RERANK, content=b"{}", headers=headers), 415)
        for path in PATHS:
            check_error(await server.client.get(path), 405)
        check_error(await post(server, query="a" * 2000), 413)
        assert await results(server)


async def test_a_full_queue_refuses_and_the_admitted_end() -> None:
    async with api(make_settings(max_waiting=2), task="rerank", max_num_seqs=2) as server:
        many: dict[str, Any] = {"documents": ["a" * 500] * 40}
        answers = await asyncio.gather(*(post(server, **many) for _ in range(20)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < 20
        for answer in refused:
            assert check_error(answer, 503)["code"] == "queue_full"
            assert answer.headers["retry-after"]
        assert await results(server)
        await server.idle()


async def test_a_reranker_refuses_all_else_by_name() -> None:
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
        "/v1/completions": {"prompt": "Hi"},
        "/v1/embeddings": {"input": "Hi"},
        "/v1/responses": {"input": "Hi"},
        "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5},
    }
    async with api(task="rerank") as server:
        for path, body in bodies.items():
            answer = await server.client.post(path, json={"model": MODEL, **body})
            assert answer.status_code == 400, path
            assert "/v1/rerank" in answer.json()["error"]["message"]


@pytest.mark.parametrize("task", ["generate", "embed"])
async def test_other_models_refuse_and_say_what_works(task: Any) -> None:
    async with api(task=task) as server:
        for path in PATHS:
            error = check_error(await post(server, path=path), 400, "model")
            assert error["code"] == "wrong_task"
            for way in ("--task rerank", "/v1/embeddings"):
                assert way in error["message"]


async def test_the_card_says_the_task() -> None:
    async with api(task="rerank") as server:
        card = (await server.client.get(f"/v1/models/{MODEL}")).json()
        assert card["task"] == "rerank"
        assert not card["capabilities"]["completion_chat"]


async def test_a_keys_tokens_are_those_of_the_prompts(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice", tokens_per_minute=10)
    async with api(make_settings(key_file=path), task="rerank") as server:
        check_error(await post(server), 401)
        headers = {"authorization": f"Bearer {secret}"}
        body = {"model": MODEL, "query": "q", "documents": ["abc", "de"]}
        answer = await server.client.post(RERANK, json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-reserved-tokens"] == "9"
        assert answer.headers["x-ratelimit-remaining-tokens"] == "1"
        check_error(await server.client.post(RERANK, json=body, headers=headers), 429)


async def test_metrics_status_and_traces_count_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with collector() as found:
        settings = make_settings(otlp_traces_endpoint=found.url)
        async with api(settings, task="rerank") as server:
            await results(server, query="q", documents=["abc", "de"])
            lines = (await server.client.get("/metrics")).text.splitlines()
            status = (await server.client.get("/status.json")).json()
            span = found.until(lambda span: span["name"] == f"rerank {MODEL}")
    counted = [line for line in lines if line.startswith("vllm:request_success")]
    assert any(line.endswith(" 2.0") for line in counted), counted
    assert any(
        line.startswith("vllm:prompt_tokens_total") and line.endswith(" 9.0") for line in lines
    )
    assert status["totals"]["prompt_tokens"] == 9
    assert status["totals"]["generation_tokens"] == 0
    expected = {
        "gen_ai.operation.name": "rerank",
        "gen_ai.request.model": MODEL,
        "gen_ai.usage.input_tokens": 9,
        "http.route": RERANK,
    }
    assert expected.items() <= span["attributes"].items()
    assert not span["failed"]
