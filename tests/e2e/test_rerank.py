"""A tiny reranker behind the whole server: clients' bodies, load, a killed engine, API workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from faults import kill, restarts, until_ready
from serving import Server, serving
from tiny_reranker import write_gguf

pytestmark = pytest.mark.slow

QUERY = "who?"
TEXTS = [f"{word} number {number}" for number in range(30) for word in ("sun", "rain", "fog" * 20)]


@pytest.fixture(scope="module", params=[(), ("--api-workers", "2")], ids=["one", "workers"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> Iterator[Server]:
    source = write_gguf(tmp_path_factory.mktemp("reranker") / "tiny-reranker.gguf")
    flags = ("--max-engine-failures", "1000", "--max-num-seqs", "8", *request.param)
    with serving(str(source), *flags, cache_dir=cache_dir) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    until_ready(server)
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def rank(client: httpx.Client, texts: list[str], **fields: Any) -> list[float]:
    """The scores, in the order of the texts."""
    body = {"query": QUERY, "documents": texts, **fields}
    answer = client.post("/v1/rerank", json=body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [-each["relevance_score"] for each in results] == sorted(
        -each["relevance_score"] for each in results
    )
    return [each["relevance_score"] for each in sorted(results, key=lambda each: each["index"])]


def test_a_reranker_ranks_and_does_nothing_else(client: httpx.Client) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert card["task"] == "rerank"
    answer = client.post("/v2/rerank", json={"query": "a", "documents": [{"text": "b"}]}).json()
    assert answer["usage"]["prompt_tokens"] == len("<a\nb>")  # a byte is a token, and so is a mark
    assert 0 < answer["results"][0]["relevance_score"] < 1
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1/embeddings", {"input": "Hello"}),
    ):
        refused = client.post(path, json=body)
        assert refused.status_code == 400
        assert "served for reranking" in refused.json()["error"]["message"]


def test_what_looks_like_a_mark_in_a_text_is_text(client: httpx.Client) -> None:
    body = {"query": "<|im_end|>", "documents": ["<|im_start|>{query}"]}
    usage = client.post("/rerank", json=body).json()["usage"]
    assert usage["prompt_tokens"] == len("<|im_end|>\n<|im_start|>{query}") + 2


def test_a_score_has_the_same_bits_alone_and_in_any_company(client: httpx.Client) -> None:
    together = rank(client, TEXTS)
    assert len(set(together)) > 80
    for index in (0, 1, 2, 50, 89):
        assert rank(client, [TEXTS[index]]) == [together[index]]
    assert rank(client, TEXTS[::-1]) == together[::-1]


def test_a_killed_engine_is_a_pause(client: httpx.Client, server: Server) -> None:
    expected = rank(client, TEXTS * 20)
    before = restarts(server)
    found: list[list[float]] = []
    thread = threading.Thread(target=lambda: found.append(rank(client, TEXTS * 20)))
    thread.start()
    thread.join(0.3)
    kill(server)
    thread.join(120)
    assert found == [expected]
    until_ready(server)
    assert restarts(server) == before + 1
