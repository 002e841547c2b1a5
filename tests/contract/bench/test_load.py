"""The load generator against the real API on the scripted engine."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from api_app import CHAT, MODEL, api, make_settings
from fake_chat_server import fake_chat_server
from maestrale.bench.apis import APIS, BenchApi
from maestrale.bench.apis import CHAT as CHAT_API
from maestrale.bench.client import BenchTarget, Client
from maestrale.bench.conversation import BenchConversation, BenchTurn, WorkloadOptions
from maestrale.bench.load import Generator, LoadPoint, Run
from maestrale.bench.results import measure
from maestrale.bench.workloads import conversations
from maestrale.cli.bench import command

pytestmark = pytest.mark.anyio


def series(*turns: BenchTurn) -> Iterator[BenchConversation]:
    return itertools.repeat(BenchConversation(turns))


def turn(text: str = "Hello", label: str = "one", **fields: Any) -> BenchTurn:
    return BenchTurn(label, ({"role": "user", "content": text},), fields)


async def load(
    url: str,
    work: Iterator[BenchConversation],
    point: LoadPoint,
    timeout: float = 30,
    api: BenchApi = CHAT_API,
) -> Run:
    client = Client(BenchTarget(url, api=api), timeout=timeout)
    try:
        return await Generator(client, MODEL, work).run(point)
    finally:
        client.close()


def url_of(client: httpx.AsyncClient) -> str:
    return str(client.base_url).rstrip("/")


async def test_tokens_are_the_servers_own_count() -> None:
    async with api(over_http=True, options={"tokens_per_step": "3"}) as running:
        work = conversations("chat", WorkloadOptions(max_tokens=40, ignore_eos=True))
        run = await load(url_of(running.client), work, LoadPoint(concurrency=4, requests=24))
        stats = running.engine.stats()
    found = measure(run)
    assert found.errors == {}
    assert 24 <= found.requests <= 27  # the other users were at theirs
    assert found.completion_tokens == 40 * found.requests == stats.generation_tokens
    assert found.prompt_tokens == stats.prompt_tokens
    # Three tokens came at once, so there were fewer arrivals than tokens.
    assert all(len(record.exchange.times) < 40 for record in run.records)
    assert found.latencies.tpot.count == found.requests


STREAMED = [name for name, one in APIS.items() if one.streams]


@pytest.mark.parametrize("name", STREAMED)
async def test_each_api_is_measured_alike(name: str) -> None:
    """A conversation of three turns, each with all that was said before."""
    options = {"tokens_per_step": "3", "length": "50"}
    async with api(over_http=True, options=options, max_num_seqs=2, fills=True) as running:
        work = conversations("chat", WorkloadOptions(max_tokens=40))
        point = LoadPoint(concurrency=1, requests=3)
        run = await load(url_of(running.client), work, point, api=APIS[name])
        stats = running.engine.stats()
    found = measure(run)
    assert found.errors == {}
    assert found.completion_tokens == 40 * found.requests == stats.generation_tokens == 120
    assert found.prompt_tokens == stats.prompt_tokens
    assert found.latencies.tpot.count == 3
    first, second, third = (record.exchange for record in run.records)
    assert all(2 < len(each.times) < 40 and each.finish_reason for each in (first, second, third))
    assert all(each.pieces >= len(each.times) for each in (first, second, third))
    prompts = [each.usage.prompt_tokens for each in (first, second, third) if each.usage]
    # What was said before is sent back, but where a gap is filled.
    assert (prompts[0] + 40 < prompts[1] < prompts[2] - 40) == (name != "fim")


@pytest.mark.parametrize(("name", "task"), [("embeddings", "embed"), ("rerank", "rerank")])
async def test_what_comes_whole_is_measured_whole(name: str, task: Any, tmp_path: Path) -> None:
    async with api(over_http=True, task=task) as running:
        url, work = url_of(running.client), conversations("chat", WorkloadOptions())
        run = await load(url, work, LoadPoint(concurrency=4, requests=24), api=APIS[name])
        found, prompts = measure(run), running.engine.stats().prompt_tokens
        page, data = tmp_path / "r.html", tmp_path / "r.json"
        to_files = ("--requests", "4", "--report", str(page), "--json", str(data))
        code, text = await in_thread(url, "--api", name, "--slo", "e2e:9s", *to_files)
        wrong = await in_thread(url, "--requests", "1")
        refused = [
            await in_thread(url, "--api", name, "--requests", "1", *more)
            for more in (("--max-tokens", "9"), ("--ignore-eos",), ("--slo", "ttft:1s"))
        ]
    assert found.errors == {}
    assert found.prompt_tokens == prompts > 0
    assert found.completion_tokens == found.output_tokens_per_second == 0
    assert found.input_tokens_per_second > 0
    assert found.latencies.e2e.count == found.requests >= 24
    assert code == 0, text
    assert "whole answer" in text
    assert "first token" not in text + page.read_text()
    assert json.loads(data.read_text())["api"] == name
    assert wrong[0] == 2
    assert "wrong_task" in wrong[1]
    assert [code for code, _ in refused] == [2, 2, 2]
    assert all("embedding" in text for _, text in refused)


async def test_as_many_at_once_as_asked_for() -> None:
    async with api(over_http=True, options={"tokens_per_second": "100"}) as running:
        work = series(turn(max_tokens=20, ignore_eos=True))
        run = await load(url_of(running.client), work, LoadPoint(concurrency=6, duration=0.5))
    spans = [(record.exchange.started, record.exchange.ended) for record in run.records]
    assert max(sum(begin <= at < end for begin, end in spans) for at, _ in spans) == 6
    assert run.running == 0


async def test_a_follow_up_sends_back_what_was_said() -> None:
    seen = []
    with fake_chat_server("accepts all") as fake:
        turns = (turn("What is the opposite of hot?"), turn("And why?", "two"))
        run = await load(fake.url, series(*turns), LoadPoint(concurrency=1, requests=2))
        seen = fake.seen
    assert [record.label for record in run.records] == ["one", "two"]
    assert [record.exchange.error for record in run.records] == [None, None]
    assert [message["role"] for message in seen[1]["messages"]] == ["user", "assistant", "user"]
    assert seen[1]["messages"][1]["content"].strip() == "The opposite of hot is cold."
    assert all(body["stream_options"] == {"include_usage": True} for body in seen)


async def test_an_open_loop_keeps_its_rate_however_slow_the_server() -> None:
    """Each answer takes 0.4 s: a closed loop of one would send 5 in 2 s, not a hundred."""
    async with api(over_http=True, options={"tokens_per_second": "20"}) as running:
        work = series(turn(max_tokens=8, ignore_eos=True))
        point = LoadPoint(rate=50, duration=2.0, seed=1)
        run = await load(url_of(running.client), work, point)
    expected = list(itertools.takewhile(lambda at: at < 2.0, arrivals(50, 1)))
    assert len(run.records) == len(expected)
    assert len(run.lateness) == len(expected)
    # Each was sent when it was due: latency counts from there.
    started = sorted(record.exchange.started - run.begun for record in run.records)
    assert started == pytest.approx(expected, abs=1e-6)


def arrivals(rate: float, seed: int) -> Iterator[float]:
    from maestrale.bench.load import poisson

    return poisson(rate, seed)


async def test_errors_are_counted_by_kind() -> None:
    settings = make_settings(max_waiting=0)
    options = {"tokens_per_second": "50"}
    async with api(settings, over_http=True, options=options, max_num_seqs=2) as running:
        work = itertools.cycle(
            [
                BenchConversation((turn(max_tokens=10, ignore_eos=True),)),
                BenchConversation((turn(temperature="hot"),)),
            ]
        )
        run = await load(url_of(running.client), work, LoadPoint(concurrency=8, requests=40))
    found = measure(run)
    assert found.succeeded > 0
    assert found.errors["HTTP 503 queue_full"] > 0
    assert any(kind.startswith("HTTP 400 ") for kind in found.errors)
    assert found.succeeded + sum(found.errors.values()) == found.requests


async def test_a_stream_that_is_cut_off_is_no_success() -> None:
    with fake_chat_server("no [DONE]", "accepts all") as fake:
        run = await load(fake.url, series(turn()), LoadPoint(concurrency=1, requests=1))
    assert [record.exchange.error for record in run.records] == ["cut off before its end"]


async def test_nobody_there_and_nobody_answering() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        refused = await load(url, series(turn()), LoadPoint(concurrency=1, requests=1))
        mute.listen()
        silent = await load(url, series(turn()), LoadPoint(concurrency=1, requests=1), timeout=0.3)
    assert [record.exchange.error for record in refused.records] == ["connection refused"]
    assert [record.exchange.error for record in silent.records] == ["no end within 0.3 s"]


async def test_a_connection_that_the_server_closed_meanwhile_is_no_error() -> None:
    """It answers once on each connection, says keep-alive, and closes all the same."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        text = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
        text += b'data: {"choices": [], "usage": {"completion_tokens": 1}}\n\ndata: [DONE]\n\n'
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: "
        writer.write(head + str(len(text)).encode() + b"\r\n\r\n" + text)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        run = await load(url, series(turn()), LoadPoint(concurrency=2, requests=20))
    assert {record.exchange.error for record in run.records} == {None}


# The command


def bench(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.return_value, done.output


async def in_thread(*arguments: str) -> tuple[int, str]:
    return await asyncio.to_thread(bench, *arguments)


async def test_the_command_sweeps_and_writes_its_reports(tmp_path: Path) -> None:
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    async with api(over_http=True) as running:
        code, text = await in_thread(
            url_of(running.client),
            *("--concurrency", "1,4", "--rate", "40", "--requests", "8", "--workload", "questions"),
            *("--slo", "ttft:10s", "--report", str(page), "--json", str(data)),
        )
    assert code == 0, text
    found = json.loads(data.read_text())
    assert [one["load"] for one in found["measurements"]] == ["1 at once", "4 at once", "40/s"]
    assert found["model"] == MODEL
    assert all(one["succeeded"] == one["requests"] for one in found["measurements"])
    assert page.read_text().count("<svg") >= 4
    assert "4 at once" in text
    assert "time to first token" in text


async def test_the_command_finds_the_key_wrong_and_no_usage_is_told(tmp_path: Path) -> None:
    with fake_chat_server(key="right") as fake:
        code, text = await in_thread(fake.url, "--api-key", "wrong", "--requests", "1")
        assert code == 2
        assert "--api-key" in text
        code, text = await in_thread(fake.url, "--api-key", "right", "--requests", "1")
        assert code == 0, text


async def test_nothing_there_is_code_2() -> None:
    code, text = await in_thread("http://127.0.0.1:1", "--requests", "1")
    assert code == 2
    assert "Is the server running" in text


async def test_the_path_is_the_chat_route() -> None:
    assert (
        BenchTarget("http://a/v1").request(b"{}").startswith(f"POST {CHAT} HTTP/1.1\r\n".encode())
    )
