"""`serve --engine vllm` on vLLM's build for CPUs, and the death of each of its processes.

Run by scripts/test-vllm; left out where vLLM is not installed. A start takes a minute, so one
server is asked everything.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from maestrale.api.openai.schemas import MAX_TOP_LOGPROBS
from maestrale.engines.choose import has_vllm
from serving import Server, serving

pytestmark = pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")
ENGINE, CORE = "maestrale-engin", "EngineCore"  # how the kernel and vLLM call the processes
STORY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tell the plot of The Lion King in detail."}],
    "temperature": 0.7,
    "seed": 1337,
    "max_tokens": 60,
}
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 20}, "year": {"type": "integer"}},
    "required": ["title", "year"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(hf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--model", str(hf_folder), "--engine", "vllm", "--dtype", "float32"]
    flags += ["--enforce-eager", "--max-model-len", "1024", "--kv-cache-memory", "128MiB"]
    cache = tmp_path_factory.mktemp("cache")
    with serving(*flags, cache_dir=cache, timeout=600) as running:
        yield running


def ask(server: Server, **fields: Any) -> dict[str, Any]:
    body = {"model": "SmolLM2-135M-Instruct", **STORY, **fields}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def stream(server: Server, at_chunk: int, then: Callable[[], None], **fields: Any) -> list[str]:
    """The deltas of a streamed answer; `then` is called once, after `at_chunk` of them."""
    body = {"model": "SmolLM2-135M-Instruct", "stream": True, **STORY, **fields}
    deltas: list[str] = []
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=600) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            assert "error" not in chunk, chunk
            deltas += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
            if len(deltas) == at_chunk:
                then()
    return deltas


def processes(server: Server, name: str) -> list[int]:
    """The server's processes that are called so."""
    found = []
    for pid in server.pids():
        folder = Path(f"/proc/{pid}")
        try:
            told = (folder / "comm").read_text() + (folder / "cmdline").read_text()
        except OSError:
            continue
        if name in told:
            found.append(pid)
    return found


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_it_answers_and_counts(server: Server) -> None:
    answer = ask(server)
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] == 60
    assert answer["choices"][0]["finish_reason"] == "length"


def test_json_and_logprobs(server: Server) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "film", "schema": SCHEMA}}
    answer = ask(server, response_format=schema, logprobs=True, top_logprobs=MAX_TOP_LOGPROBS)
    film = json.loads(answer["choices"][0]["message"]["content"])
    assert set(film) == {"title", "year"}
    first = answer["choices"][0]["logprobs"]["content"][0]
    assert len(first["top_logprobs"]) == MAX_TOP_LOGPROBS


def test_a_bad_schema_is_a_400(server: Server) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "(["}}}
    body = {"model": "SmolLM2-135M-Instruct", **STORY, "response_format": schema}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=600)
    assert answer.status_code == 400


@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", [ENGINE, CORE])
def test_the_answer_is_the_same_when_a_process_is_killed_in_its_middle(
    server: Server, victim: str
) -> None:
    """kill -9 of the process that holds vLLM's front, then of vLLM's own engine core."""
    whole = "".join(stream(server, 0, lambda: None))
    before = [pid for pid in server.pids() if pid != server.process.pid]
    engine = processes(server, ENGINE)

    def kill() -> None:
        (pid,) = processes(server, victim)
        os.kill(pid, signal.SIGKILL)

    assert "".join(stream(server, 20, kill)) == whole
    assert processes(server, ENGINE) != engine, "it was replaced"
    assert gone([pid for pid in before if pid in engine or pid not in vetters(server)])
    metrics = httpx.get(f"{server.url}/metrics").text
    assert "vllm:generation_tokens_total" in metrics


def vetters(server: Server) -> list[int]:
    """The processes that vet schemas: they have nothing to do with the engine."""
    return processes(server, "vet_worker")


@pytest.mark.timeout(900)
def test_nothing_is_left_when_the_api_process_is_killed(server: Server) -> None:
    """Last: it ends the module's server."""
    pids = server.pids()
    assert len(processes(server, CORE)) == 1
    server.process.kill()
    server.process.wait()
    assert gone(pids), [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids if alive(pid)]
