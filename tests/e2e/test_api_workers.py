"""`maestrale serve --api-workers 2`: real processes, killed, reloaded, counted together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from maestrale.keys import add_key
from maestrale.usage import UsageFile
from serving import ROOT, Server, serving

pytestmark = [pytest.mark.model, pytest.mark.anyio, pytest.mark.usefixtures("prepared_model")]

CHAT = "/v1/chat/completions"
SCRIPT = {"text": "All the winds of the sea. ", "tokens_per_second": "60"}
AT_ONCE, MAY_WAIT = 16, 8


@contextlib.contextmanager
def two_workers(cache_dir: Path, *flags: str, **environment: str) -> Iterator[Server]:
    environment = {
        "PYTHONPATH": f"{ROOT}/src:{ROOT}/tests/support",
        "SCRIPT": json.dumps(SCRIPT),
        **environment,
    }
    flags = ("--engine", "scripted", "--api-workers", "2", *flags)
    module = "scripted_server"
    with serving(*flags, cache_dir=cache_dir, environment=environment, module=module) as server:
        yield server


@pytest.fixture(scope="module")
def shared(cache_dir: Path, prepared_model: Path) -> Iterator[Server]:
    limits = ("--max-num-seqs", str(AT_ONCE), "--max-waiting", str(MAY_WAIT))
    with two_workers(cache_dir, *limits, SILENCE="3") as server:
        yield server


def body(tokens: int, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Speak."}]
    return {
        "messages": messages,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
        **more,
    }


def status(server: Server, key: str = "") -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    found: dict[str, Any] = httpx.get(f"{server.url}/status.json", headers=headers).json()
    return found


def workers(server: Server, key: str = "") -> dict[int, dict[str, Any]]:
    """Those that answer, by their process."""
    processes = status(server, key)["api_processes"]
    return {each["pid"]: each for each in processes if each["state"] == "ready"}


def metrics(server: Server) -> dict[str, float]:
    """Sums over all labels, by name."""
    sums: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            sums[sample.name] += sample.value
    return sums


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def one(server: Server, request: dict[str, Any], key: str = "") -> httpx.Response:
    """On a connection of its own, so that it may reach either process."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(timeout=60, verify=False) as client:
        return await client.post(server.url + CHAT, json=request, headers=headers)


class Stream:
    """One streamed answer: its text, and how it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.text = self.last = ""
        self.cut = False

    async def read(self, server: Server, request: dict[str, Any]) -> Stream:
        async with httpx.AsyncClient(timeout=60, verify=False) as client:
            try:
                async with client.stream("POST", server.url + CHAT, json=request) as answer:
                    assert answer.status_code == 200, await answer.aread()
                    async for line in answer.aiter_lines():
                        self._take(line)
            except httpx.RemoteProtocolError:
                self.cut = True
        return self

    @property
    def whole(self) -> bool:
        return not self.cut and self.last == "[DONE]"

    def _take(self, line: str) -> None:
        if line.startswith("data: "):
            self.last = line.removeprefix("data: ")
            if self.last != "[DONE]":
                choices = json.loads(self.last).get("choices", [])
                self.text += "".join(choice["delta"].get("content") or "" for choice in choices)
                self.begun.set()


async def begin(server: Server, count: int, tokens: int) -> tuple[list[Stream], list[Any]]:
    """So many streams, each on its own connection, all under way."""
    streams = [Stream() for _ in range(count)]
    request = body(tokens, stream=True, seed=7)
    tasks = [asyncio.create_task(stream.read(server, request)) for stream in streams]
    await asyncio.gather(*(asyncio.wait_for(stream.begun.wait(), 30) for stream in streams))
    return streams, tasks


async def test_both_processes_answer_and_are_one_server(shared: Server) -> None:
    before = metrics(shared)
    answers = await asyncio.gather(*(one(shared, body(8, seed=1)) for _ in range(AT_ONCE)))
    assert {answer.status_code for answer in answers} == {200}
    texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
    assert len(texts) == 1
    after = metrics(shared)
    name = "vllm:request_success_total"
    assert after[name] - before[name] == AT_ONCE
    name = "vllm:generation_tokens_total"
    assert after[name] - before[name] == 8 * AT_ONCE
    name = "vllm:time_to_first_token_seconds_count"
    assert after[name] - before[name] == AT_ONCE
    assert after["maestrale_api_workers"] == 2
    assert len(workers(shared)) == 2


async def test_both_processes_take_part(shared: Server) -> None:
    _, tasks = await begin(shared, AT_ONCE, 300)
    try:
        until(lambda: min(each["requests"] for each in workers(shared).values()) >= 1)
        held = [each["requests"] for each in workers(shared).values()]
        assert sum(held) == AT_ONCE
        assert httpx.get(f"{shared.url}/load").json() == {"server_load": AT_ONCE}
    finally:
        for task in tasks:
            task.cancel()
    # Who leaves is noticed in either process, and frees the engine.
    until(lambda: metrics(shared)["vllm:num_requests_running"] == 0)
    until(lambda: httpx.get(f"{shared.url}/load").json() == {"server_load": 0})


async def test_the_queue_is_one_and_exact(shared: Server) -> None:
    room = AT_ONCE + MAY_WAIT
    answers = await asyncio.gather(*(one(shared, body(50)) for _ in range(room + 15)))
    counts = Counter(answer.status_code for answer in answers)
    assert counts == {200: room, 503: 15}
    refused = [answer.json()["error"]["code"] for answer in answers if answer.status_code == 503]
    assert set(refused) == {"queue_full"}


async def test_schemas_are_vetted_and_errors_have_their_shape(shared: Server) -> None:
    def asking(schema: object) -> dict[str, Any]:
        named = {"name": "it", "schema": schema}
        form = {"type": "json_schema", "json_schema": named}
        return {"messages": [{"role": "user", "content": "x"}], "response_format": form}

    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    good = await one(shared, asking({**schema, "additionalProperties": False}))
    assert good.status_code == 200, good.text
    assert set(json.loads(good.json()["choices"][0]["message"]["content"])) == {"a"}
    bad = await one(shared, asking({"type": "string", "pattern": "(["}))
    assert bad.status_code == 400
    assert bad.json()["error"]["param"] == "response_format"
    assert any(event["path"] == CHAT for event in status(shared)["events"])


async def test_an_engine_that_dies_is_a_pause_for_the_streams_of_both(shared: Server) -> None:
    streams, tasks = await begin(shared, 8, 90)
    children = Path(f"/proc/{shared.process.pid}/task/{shared.process.pid}/children")
    for child in children.read_text().split():
        if b"supervise.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    await asyncio.gather(*tasks)
    assert all(stream.whole for stream in streams)
    assert len({stream.text for stream in streams}) == 1
    assert len(streams[0].text) > 100
    assert status(shared)["totals"]["restarts"] == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
async def test_a_worker_that_is_lost_cuts_its_own_streams_alone(
    shared: Server, number: signal.Signals
) -> None:
    before, counted = workers(shared), metrics(shared)
    streams, tasks = await begin(shared, AT_ONCE, 200)
    until(lambda: min(each["requests"] for each in workers(shared).values()) >= 1)
    victim = max(before)
    held = workers(shared)[victim]["requests"]
    os.kill(victim, number)
    await asyncio.gather(*tasks)
    assert sum(stream.cut for stream in streams) == held
    whole = [stream for stream in streams if stream.whole]
    assert len(whole) == AT_ONCE - held
    assert len({stream.text for stream in whole}) == 1
    until(lambda: len(workers(shared)) == 2)
    assert victim not in workers(shared)
    # Nothing of the lost is left behind, and nothing that was counted is forgotten.
    until(lambda: metrics(shared)["vllm:num_requests_running"] == 0)
    until(lambda: httpx.get(f"{shared.url}/load").json() == {"server_load": 0})
    after = metrics(shared)
    restarts = "maestrale_api_worker_restarts_total"
    assert after[restarts] == counted[restarts] + 1
    for name in ("vllm:request_success_total", "http_requests_total", "vllm:prompt_tokens_total"):
        assert after[name] >= counted[name]
    assert (await one(shared, body(4))).status_code == 200


async def test_sighup_replaces_the_workers_and_cuts_nothing(shared: Server) -> None:
    old = set(workers(shared))
    streams, tasks = await begin(shared, 6, 180)
    shared.process.send_signal(signal.SIGHUP)
    answers = []
    while len(new := set(workers(shared)) - old) < 2:
        answers.append((await one(shared, body(2))).status_code)
    await asyncio.gather(*tasks)
    assert all(stream.whole for stream in streams)
    assert set(answers) == {200}
    until(lambda: set(workers(shared)) == new)


async def test_a_rate_limit_is_one_for_all_processes(cache_dir: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    limited = add_key(keys, "limited", requests_per_minute=40)
    free = add_key(keys, "free")
    with two_workers(cache_dir, "--key-file", str(keys)) as server:
        begun = time.monotonic()
        answers = await asyncio.gather(*(one(server, body(1), limited) for _ in range(80)))
        refilled = int((time.monotonic() - begun) * 40 / 60) + 1
        counts = Counter(answer.status_code for answer in answers)
        assert set(counts) == {200, 429}
        assert 40 <= counts[200] <= 40 + refilled
        assert (await one(server, body(1), free)).status_code == 200
        assert (await one(server, body(1), "sk-wrong")).status_code == 401
        # SIGTERM: what runs ends well, what comes is refused, nothing is left.
        request = body(150, stream=True)
        async with httpx.AsyncClient(timeout=60, verify=False) as client:
            headers = {"authorization": f"Bearer {free}"}
            url = server.url + CHAT
            async with client.stream("POST", url, json=request, headers=headers) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                server.process.send_signal(signal.SIGTERM)
                until(lambda: httpx.get(f"{server.url}/health").json()["status"] == "draining")
                refused = await one(server, body(1), free)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "draining"
                rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.log()


async def test_usage_is_exact_over_kills_and_restarts(cache_dir: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    alice = add_key(keys, "alice", requests_per_day=24, tokens_per_day=100_000)
    bob = add_key(keys, "bob")
    told = Counter[str]()
    for turn in range(2):
        with two_workers(cache_dir, "--key-file", str(keys)) as server:
            asked = [one(server, body(3 + n), key) for n in range(12) for key in (alice, bob)]
            for answer, name in zip(
                await asyncio.gather(*asked), ("alice", "bob") * 12, strict=True
            ):
                assert answer.status_code == 200, answer.text
                told[name] += answer.json()["usage"]["total_tokens"]
            if turn:
                assert (await one(server, body(3), alice)).status_code == 429
                told["bob"] += await cut(server, bob)
            server.process.kill()  # whatever was answered is on the disk
    rows = {row.key: row for row in UsageFile(keys.with_name("usage.db")).read(["key"])}
    assert {name: (row.requests, row.errors) for name, row in rows.items()} == {
        "alice": (24, 0),
        "bob": (25, 1),
    }
    assert rows["alice"].tokens == told["alice"]
    assert 0 <= rows["bob"].tokens - told["bob"] < 100  # on the way when the worker died


COUNTED = {"include_usage": True, "continuous_usage_stats": True}


async def cut(server: Server, key: str) -> int:
    """Kill the workers under a stream; the tokens that its client can know of."""
    headers = {"authorization": f"Bearer {key}"}
    tokens = 0
    request = body(1000, stream=True, stream_options=COUNTED)
    async with httpx.AsyncClient(timeout=60) as client:
        with contextlib.suppress(httpx.RemoteProtocolError):
            async with client.stream(
                "POST", server.url + CHAT, json=request, headers=headers
            ) as got:
                async for line in got.aiter_lines():
                    if line.startswith("data: {"):
                        usage = json.loads(line.removeprefix("data: ")).get("usage")
                        if usage is None:
                            continue
                        tokens = usage["total_tokens"]
                        if usage["completion_tokens"] == 5:
                            for pid in workers(server, key):
                                os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while len(workers(server, key)) < 2:  # whoever is there again has counted it
            await asyncio.sleep(0.05)
    return tokens
