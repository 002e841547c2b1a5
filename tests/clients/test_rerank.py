"""Documents ranked by Cohere's client, by LiteLLM in Jina's and vLLM's words, and on npm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cohere
import httpx
import litellm
import pytest

from script import MODEL
from serving import Server
from test_embeddings import TEXTS, ask

QUERY = "What burns?"
Ranking = list[tuple[int, float]]


@pytest.fixture(scope="module")
def expected(reranker: Server) -> Ranking:
    """Places of the documents and their scores, the best first."""
    body = {"query": QUERY, "documents": TEXTS}
    found = httpx.post(f"{reranker.url}/v1/rerank", json=body).json()["results"]
    ranking = [(each["index"], each["relevance_score"]) for each in found]
    assert len({score for _, score in ranking}) == len(TEXTS)
    assert [index for index, _ in ranking] != [0, 1, 2]  # so that an order can be got wrong
    return ranking


@pytest.mark.parametrize("kind", [cohere.Client, cohere.ClientV2])
def test_cohere(reranker: Server, expected: Ranking, kind: Any) -> None:
    client = kind(api_key="none", base_url=reranker.url)
    done = client.rerank(model=MODEL, query=QUERY, documents=TEXTS, top_n=2)
    assert [(each.index, each.relevance_score) for each in done.results] == expected[:2]


@pytest.mark.parametrize(
    ("way", "path"),
    [("cohere", "/v2/rerank"), ("jina_ai", "/v1/rerank"), ("hosted_vllm", "/v1/rerank")],
)
def test_litellm(reranker: Server, expected: Ranking, way: str, path: str) -> None:
    done = litellm.rerank(
        model=f"{way}/{MODEL}", api_base=f"{reranker.url}{path}", api_key="none", query=QUERY,
        documents=TEXTS, top_n=2, return_documents=True,
    )  # fmt: skip
    found = [(each["index"], each["relevance_score"]) for each in done.results]
    assert found == expected[:2]


def test_the_ai_sdk(npm: Path, reranker: Server, expected: Ranking) -> None:
    found = ask(npm, reranker, "AI SDK, cohere")["ranking"]
    assert [each["originalIndex"] for each in found] == [index for index, _ in expected[:2]]
    assert [each["score"] for each in found] == [score for _, score in expected[:2]]
    assert found[0]["document"] == TEXTS[expected[0][0]]
