"""Filling in the middle with Mistral's own client and tokenizer, and a kill of the engine in it.

The tiny Mistral's weights are random: what it fills in is noise, the same each time.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistralai.client import Mistral

from e2e_clients import TIMEOUT
from faults import hit
from maestrale.models.mistral_vocabulary import shipped_file
from serving import Server
from tiny_mistral import serving_tiny_mistral
from verifying import verify

pytestmark = [pytest.mark.model, pytest.mark.slow]

CODESTRAL = "mistralai/Codestral-22B-v0.1"
ASKED: dict[str, Any] = {"prompt": "def fibonacci(n):\n    ", "suffix": "\n    return result"}


@pytest.fixture(scope="module")
def codestral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_tiny_mistral(tmp_path_factory.mktemp("fim"), CODESTRAL, version="v3") as running:
        yield running


def test_the_prompt_is_mistral_common_s(codestral: Server) -> None:
    tokenizer = MistralTokenizer.from_file(shipped_file("v3"))
    for path in ("/v1/fim/completions", "/v1/completions"):
        body = {**ASKED, "max_tokens": 2, "return_token_ids": True}
        answer = httpx.post(f"{codestral.url}{path}", json=body, timeout=TIMEOUT).json()
        told = answer.get("prompt_token_ids") or answer["choices"][0]["prompt_token_ids"]
        assert told == tokenizer.encode_fim(FIMRequest(**ASKED)).tokens


def test_mistrals_client_gets_the_same_whole_and_streamed(codestral: Server) -> None:
    fields: dict[str, Any] = {**ASKED, "random_seed": 5, "max_tokens": 40, "temperature": 0.7}
    with Mistral(server_url=codestral.url, api_key="none") as client:
        whole = client.fim.complete(model=CODESTRAL, **fields)
        with client.fim.stream(model=CODESTRAL, **fields) as events:
            deltas = [event.data.choices[0].delta.content for event in events]
    assert whole.choices is not None
    assert whole.choices[0].message is not None
    assert "".join(str(delta) for delta in deltas if delta) == whole.choices[0].message.content
    assert whole.usage.completion_tokens is not None
    assert 1 <= whole.usage.completion_tokens <= 40


def test_a_kill_within_an_answer_changes_no_byte(codestral: Server) -> None:
    body = {**ASKED, "seed": 9, "max_tokens": 600, "ignore_eos": True}
    url = f"{codestral.url}/v1/fim/completions"
    with httpx.Client(timeout=TIMEOUT) as client:
        before = client.post(url, json=body).json()["choices"][0]
        assert before["finish_reason"] == "length"
        with client.stream("POST", url, json={**body, "stream": True}) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            hit(codestral, signal.SIGKILL)
            events = [json.loads(line[6:]) for line in [first, *lines] if line[:7] == "data: {"]
        choices = [event["choices"][0] for event in events]
        texts = [choice["delta"].get("content") or "" for choice in choices]
        assert "".join(texts) == before["message"]["content"]
        assert choices[-1]["finish_reason"] == "length"
        killer = threading.Timer(0.1, hit, [codestral, signal.SIGKILL])
        killer.start()
        again = client.post(url, json=body).json()["choices"][0]
        killer.join()
        assert again == before


def test_the_collection_finds_all_well_but_the_sense(codestral: Server) -> None:
    done = verify(codestral.url, "--json", "--folder", "Models", "--folder", "Fill in the middle")
    assert done.failed() == {("Between two texts", "sense: it adds the numbers")}
    assert done.skipped() == set()
    assert [one["name"] for one in done.report["requests"] if one["folder"] != "Is it up"] == [
        "Between two texts",
        "Between two texts, as a stream",
        "A suffix without a prompt",
    ]
