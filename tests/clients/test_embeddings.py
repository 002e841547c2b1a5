"""Texts embedded by clients of OpenAI's and Mistral's APIs, in Python and on npm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litellm
import pytest
from langchain_core.embeddings import Embeddings
from langchain_mistralai import MistralAIEmbeddings
from langchain_openai import OpenAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from openai import OpenAI
from pydantic_ai.embeddings import Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.providers.openai import OpenAIProvider

from script import MODEL
from serving import Server

TEXTS = ["The sea.", "A lighthouse.", "Bread."]
NPM_CLIENTS = ("openai", "mistral", "AI SDK, openai", "AI SDK, compatible", "AI SDK, mistral")
Vectors = list[list[float]]


@pytest.fixture(scope="module")
def expected(embedder: Server) -> Vectors:
    """The vectors, as OpenAI's own client reads them."""
    with OpenAI(base_url=f"{embedder.url}/v1", api_key="none") as client:
        data = client.embeddings.create(model=MODEL, input=TEXTS).data
    vectors = [each.embedding for each in data]
    assert len({tuple(vector) for vector in vectors}) == len(TEXTS)
    return vectors


def check(found: Vectors, expected: Vectors) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-7)


@pytest.mark.parametrize("client", NPM_CLIENTS)
def test_on_npm(npm: Path, embedder: Server, expected: Vectors, client: str) -> None:
    found = ask(npm, embedder, client)
    check([found["one"]], expected[:1])
    check(found["many"], expected)
    assert found["tokens"] > 0


def ask(npm: Path, server: Server, client: str) -> dict[str, Any]:
    """What embedding.mjs prints, of texts or of their ranking."""
    done = subprocess.run(
        ["node", npm.with_name("embedding.mjs"), server.url, MODEL, client],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("way", ["openai", "hosted_vllm", "mistral"])
def test_litellm(embedder: Server, expected: Vectors, way: str) -> None:
    done = litellm.embedding(
        model=f"{way}/{MODEL}", api_base=f"{embedder.url}/v1", api_key="none", input=TEXTS
    )
    check([each["embedding"] for each in done.data], expected)
    assert done.usage.prompt_tokens > 0


def test_pydantic_ai(embedder: Server, expected: Vectors) -> None:
    provider = OpenAIProvider(base_url=f"{embedder.url}/v1", api_key="none")
    model = Embedder(OpenAIEmbeddingModel(MODEL, provider=provider))
    done = model.embed_documents_sync(TEXTS)
    check([list(vector) for vector in done.embeddings], expected)
    assert done.usage.input_tokens > 0


class TestOpenAI(EmbeddingsIntegrationTests):
    """LangChain's standard suite, which compares what it gives with itself."""

    url = ""

    @pytest.fixture(autouse=True)
    def _served(self, embedder: Server) -> None:
        type(self).url = embedder.url

    @pytest.fixture
    def model(self, _served: None) -> Embeddings:
        """As the suite makes it, when the server is there."""
        made: Embeddings = self.embeddings_class(**self.embedding_model_params)
        return made

    @property
    def embeddings_class(self) -> Callable[..., Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        own = {"base_url": f"{self.url}/v1", "api_key": "none", "model": MODEL}
        return {**own, "check_embedding_ctx_length": False}  # else it sends OpenAI's token ids

    def test_the_vectors(self, model: Embeddings, expected: Vectors) -> None:
        check(model.embed_documents(TEXTS), expected)
        check([model.embed_query(TEXTS[0])], expected[:1])


class TestMistral(TestOpenAI):
    @property
    def embeddings_class(self) -> Callable[..., Embeddings]:
        return MistralAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"endpoint": f"{self.url}/v1/", "api_key": "none", "model": MODEL}
