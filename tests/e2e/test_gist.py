"""The request that the project began with, byte for byte, and the answer it promised."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e_clients import TIMEOUT, strict_openai
from gist import BODY, NAME, post
from serving import Server, serving

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def renamed(cache_dir: Path, prepared_model: Path) -> Iterator[Server]:
    with serving("--served-model-name", NAME, cache_dir=cache_dir) as running:
        yield running


def test_the_gists_curl(renamed: Server) -> None:
    body = post(renamed.url)
    # The fields that the gist shows, and their types.
    assert isinstance(body["id"], str)
    assert body["object"] == "chat.completion"
    assert isinstance(body["created"], int)
    assert body["model"] == NAME
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    # Where so small a model ends a sampled answer depends on how the CPU rounds.
    assert choice["finish_reason"] in ("stop", "length")
    stopped = choice["finish_reason"] == "stop"
    text = choice["message"]["content"]
    assert text
    usage = body["usage"]
    assert stopped or usage["completion_tokens"] == json.loads(BODY)["max_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    # Again, beside a request that tells each token: the same answer; only id and time are new.
    sent = json.loads(BODY)
    with (
        httpx.Client(base_url=renamed.url, timeout=TIMEOUT) as client,
        ThreadPoolExecutor() as pool,
    ):
        second = pool.submit(post, renamed.url)
        counted = client.post("/v1/chat/completions", json={**sent, "logprobs": True}).json()
        prompt = client.post("/tokenize", json={"model": NAME, "messages": sent["messages"]}).json()
    again = second.result()
    assert again["choices"] == body["choices"]
    assert again["usage"]["completion_tokens"] == usage["completion_tokens"]
    assert again["id"] != body["id"]
    # The usage, counted another way: the prompt's tokens, and the answer's with its end, if any.
    entries = counted["choices"][0]["logprobs"]["content"]
    joined = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert joined.decode(errors="replace").rstrip("\ufffd") == text.rstrip("\ufffd")
    assert usage["completion_tokens"] == len(entries) + stopped
    assert usage["prompt_tokens"] == prompt["count"]


def test_the_model_is_listed_and_shown(renamed: Server) -> None:
    with strict_openai(renamed) as client:
        (only,) = client.models.list().data
        assert only.id == NAME
        assert client.models.retrieve(NAME) == only
    plain = httpx.get(f"{renamed.url}/v1/models/{NAME}", timeout=TIMEOUT)
    escaped = httpx.get(f"{renamed.url}/v1/models/{NAME.replace('/', '%2F')}", timeout=TIMEOUT)
    assert plain.json() == escaped.json()
    for name in ("smollm2-135m-instruct", "mistralai", f"{NAME}/", "mistralai/Mistral-7B"):
        missing = httpx.get(f"{renamed.url}/v1/models/{name}", timeout=TIMEOUT)
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"


def test_what_the_request_leaves_open_is_as_the_models_card_advises(renamed: Server) -> None:
    card = httpx.get(f"{renamed.url}/v1/models/{NAME}", timeout=TIMEOUT).json()
    assert card["default_model_temperature"] == 0.2
    body = {"messages": [{"role": "user", "content": "Name five fruits."}], "max_tokens": 40}

    def text(**more: Any) -> str:
        url = f"{renamed.url}/v1/chat/completions"
        response = httpx.post(url, json={**body, "seed": 5, **more}, timeout=TIMEOUT)
        found: str = response.raise_for_status().json()["choices"][0]["message"]["content"]
        return found

    assert text() == text(temperature=0.2, top_p=0.9)
    assert text() != text(temperature=1.0, top_p=1.0)
