"""A tiny embedding model behind the whole server: clients, load, a killed engine, API workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

from faults import kill, restarts, until_ready
from serving import Server, serving
from tiny_embedder import EOS, write_embedder

pytestmark = pytest.mark.slow

TEXTS = [f"{word} number {number}" for number in range(30) for word in ("sun", "rain", "fog" * 20)]


@pytest.fixture(scope="module", params=[(), ("--api-workers", "2")], ids=["one", "workers"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("embedder") / "tiny-embedder"
    write_embedder(folder)
    flags = ("--max-engine-failures", "1000", "--max-num-seqs", "8", *request.param)
    with serving(str(folder), *flags, cache_dir=cache_dir) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    until_ready(server)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def embed(client: openai.OpenAI, texts: list[str]) -> list[list[float]]:
    answer = client.embeddings.create(model="tiny-embedder", input=texts)
    return [each.embedding for each in answer.data]


def test_a_model_made_for_embeddings_makes_them(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert card.model_dump()["task"] == "embed"
    answer = client.embeddings.create(model=card.id, input="Hello")
    assert answer.usage.prompt_tokens == 6  # a byte is a token, and its end has one
    ended = client.embeddings.create(model=card.id, input=[*b"Hello", EOS])
    assert ended.data[0].embedding == answer.data[0].embedding
    with pytest.raises(openai.BadRequestError, match="served for embeddings"):
        client.chat.completions.create(
            model=card.id, messages=[{"role": "user", "content": "Hello"}]
        )


def test_a_text_has_the_same_bits_alone_and_in_any_company(client: openai.OpenAI) -> None:
    together = embed(client, TEXTS)
    for index in (0, 1, 2, 50, 89):
        assert embed(client, [TEXTS[index]]) == [together[index]]
    assert embed(client, TEXTS[::-1]) == together[::-1]


def test_a_killed_engine_is_a_pause(client: openai.OpenAI, server: Server) -> None:
    expected = embed(client, TEXTS * 20)
    before = restarts(server)
    found: list[list[list[float]]] = []
    thread = threading.Thread(target=lambda: found.append(embed(client, TEXTS * 20)))
    thread.start()
    thread.join(0.3)
    kill(server)
    thread.join(120)
    assert found == [expected]
    until_ready(server)
    assert restarts(server) == before + 1


def test_langchain_embeds_documents(client: openai.OpenAI, server: Server) -> None:
    model = OpenAIEmbeddings(
        model="tiny-embedder",
        base_url=f"{server.url}/v1",
        api_key=SecretStr("none"),
        check_embedding_ctx_length=False,  # it would send ids of another model's tokenizer
    )
    assert model.embed_documents(TEXTS[:3]) == embed(client, TEXTS[:3])
    assert model.embed_query(TEXTS[1]) == embed(client, [TEXTS[1]])[0]
