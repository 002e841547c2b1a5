"""Real clients of the one server that all of these tests share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from mistralai.client import Mistral
from openai import OpenAI

from e2e_clients import TIMEOUT, strict_openai
from serving import Server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def model(server: Server) -> str:
    """The name that the API knows the bundled model by."""
    name: str = httpx.get(f"{server.url}/v1/models", timeout=TIMEOUT).json()["data"][0]["id"]
    return name


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """Plain HTTP, for what the SDKs hide."""
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        yield client


@pytest.fixture
def openai_client(server: Server) -> Iterator[OpenAI]:
    with strict_openai(server) as client:
        yield client


@pytest.fixture
def mistral_client(server: Server) -> Iterator[Mistral]:
    with Mistral(server_url=server.url, api_key="none", timeout_ms=int(TIMEOUT * 1000)) as client:
        yield client
