"""SIGHUP with a changed program: a new version takes over the port and the ledger, under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from upgrading import CHAT, COMING_UP, Reading, Upgradable, events_of, upgradable

pytestmark = [pytest.mark.model, pytest.mark.anyio, pytest.mark.usefixtures("prepared_model")]

OLD = {"text": "All the winds of the sea. ", "tokens_per_second": "20", "fingerprint": "old"}
NEW = {"text": "No wind at all on land. ", "tokens_per_second": "20", "fingerprint": "new"}
CLIENTS = 16
LONG = 4000  # tokens: a stream that is there until it is ended


def body(tokens: int = 60, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Speak."}]
    return {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "seed": 5, **more}


async def begun(server: Upgradable, tokens: int, **headers: str) -> tuple[Reading, Any]:
    reading = Reading()
    task = asyncio.create_task(reading.read(server.url, body(tokens), **headers))
    await asyncio.wait_for(reading.begun.wait(), 30)
    return reading, task


async def test_no_stream_of_the_real_model_is_lost_or_changed(
    cache_dir: Path, tmp_path: Path
) -> None:
    """16 clients ask all the time; each answer is the one that nobody disturbed."""
    with upgradable(tmp_path, cache_dir, "--durable") as server:
        asked = [
            {"messages": [{"role": "user", "content": f"Tell me of the number {n}."}], "seed": n}
            | {"max_tokens": 15 + 15 * n, "ignore_eos": True}
            for n in range(4)
        ]
        calm = [await Reading().read(server.url, each) for each in asked]
        assert all(each.done for each in calm)
        old = calm[0].fingerprint
        over, all_read = asyncio.Event(), list[tuple[int, Reading]]()

        def news() -> list[Reading]:
            return [each for _, each in all_read if each.fingerprint not in ("", old)]

        async def client(number: int) -> None:
            while not over.is_set():
                number = (number + 1) % len(asked)
                reading = Reading()
                all_read.append((number, reading))
                await reading.read(server.url, asked[number])

        clients = [asyncio.create_task(client(n)) for n in range(CLIENTS)]
        await server.until(lambda: sum(each.begun.is_set() for _, each in all_read) >= CLIENTS)
        await server.upgraded()
        taken_over = time.monotonic()
        await server.until(news)
        over.set()
        await asyncio.gather(*clients)
        await server.gone(server.first)
        assert server.server.process.wait(5) == 0
        assert all(each.done and not each.cut for _, each in all_read)
        assert [each.text for _, each in all_read] == [calm[n].text for n, _ in all_read]
        assert len({each.fingerprint for _, each in all_read}) == 2
        assert any(each.fingerprint == old and each.last > taken_over for _, each in all_read)


async def test_another_arithmetic_and_the_streams_of_the_old(
    cache_dir: Path, tmp_path: Path
) -> None:
    """What the old one makes can be asked for at the port, and is its own to the last byte."""
    with upgradable(tmp_path, cache_dir, "--durable", "--api-workers", "2", script=OLD) as server:
        slow, reading_slow = await begun(server, LONG)
        once, reading_once = await begun(server, LONG, **{"idempotency-key": "once"})
        background = httpx.post(
            f"{server.url}/v1/responses",
            json={"input": "Speak.", "background": True, "max_output_tokens": 400},
        ).json()["id"]
        await server.upgraded(**NEW)
        answer = server.ask(body(20)).json()
        assert answer["system_fingerprint"] == "new"
        assert answer["choices"][0]["message"]["content"].startswith("No wind")
        reading_slow.cancel()  # its client lost the connection, and comes again
        seen = len(events_of(slow.raw).split("\n\n")) - 2
        rest = await some_of(server, "GET", f"/v1/streams/{slow.id}", {"last-event-id": str(seen)})
        assert rest.text.startswith(f"id: {seen + 1}\n")
        assert '"system_fingerprint":"old"' in rest.text
        asked = {**body(LONG), "stream": True}
        key = {"idempotency-key": "once"}
        again = await some_of(server, "POST", CHAT, key, asked)
        assert again.headers["idempotent-replayed"] == "true"
        assert once.raw.startswith(again.text)
        assert server.ask(body(5), **key).status_code == 409
        url, seen_done = f"{server.url}/v1/responses/{background}", ("completed", "incomplete")
        await server.until(lambda: httpx.get(url).json()["status"] in seen_done)
        assert "land" not in httpx.get(url).text
        # The old one is killed: what it had not finished can't be gone on with, and is told so.
        for pid in {server.first, *_below(server.first)} - {server.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await reading_once
        assert once.cut
        gone = httpx.get(f"{server.url}/v1/streams/{once.id}", timeout=60)
        assert gone.status_code == 410, gone.text
        assert "another engine" in gone.json()["error"]["message"]


@dataclass
class Some:
    headers: httpx.Headers
    text: str


async def some_of(
    server: Upgradable, method: str, path: str, headers: dict[str, str], asked: Any = None
) -> Some:
    """The first events of an answer."""
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream(method, server.url + path, headers=headers, json=asked) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        text = ""
        async for part in answer.aiter_text():
            text += part
            events = events_of(text[: text.rfind("\n\n") + 2])
            if events.count("\n\n") >= 20:
                return Some(answer.headers, events)
    raise AssertionError(f"it has ended: {text}")


def _below(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in found.read_text().split()] if found.exists() else []


async def test_what_does_not_come_up_changes_nothing(cache_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "cfg").mkdir()
    config = tmp_path / "cfg" / "maestrale.toml"
    config.write_text("[serve]\nmax_n = 4\n")
    flags = ("--config", str(config))
    with upgradable(tmp_path, cache_dir, *flags, script={**OLD, "length": "400"}) as server:
        reading, task = await begun(server, 300)
        failures = 0

        async def fails(*words: str) -> None:
            nonlocal failures
            failures += 1
            server.hang_up()
            await server.logs("did not come up", failures)
            said = server.server.log().rpartition(COMING_UP)[2]
            assert all(word in said for word in words), said
            assert server.pid == server.first
            assert server.ask(body(2)).status_code == 200

        config.write_text("[serve]\nmax_n = 'many'\n")
        await fails("max_n", "many", "exit code 2")
        config.write_text("[serve]\nhost = 'localhost'\nmodel = '/no/such.gguf'\n")
        await fails("/no/such.gguf", "exit code 1")
        config.write_text("[serve]\nmax_n = 4\n")
        main = server.package / "serve" / "server.py"
        whole = main.read_text()
        main.write_text("this is no Python\n")
        await fails("did not come up")
        main.write_text(whole)
        server.change()
        server.hang_up()
        await server.until(lambda: server.pid != server.first)
        assert server.ask(body(2)).status_code == 200
        await task
        assert reading.done


async def test_kills_and_signals_in_the_middle(cache_dir: Path, tmp_path: Path) -> None:
    slow = {**OLD, "start_seconds": "3"}
    with upgradable(tmp_path, cache_dir, "--grace", "1", script=OLD) as server:
        reading, task = await begun(server, LONG)
        # The new one is killed before it is there.
        server.change(**slow)
        server.hang_up()
        await server.logs(COMING_UP)
        server.hang_up()  # which changes nothing
        await server.logs("about to take over already")
        await server.until(lambda: _successor(server))
        os.kill(_successor(server), signal.SIGKILL)
        await server.logs("ended by SIGKILL")
        assert server.ask(body(2)).status_code == 200
        # And after it has taken over: the old one still answers, and is back.
        await server.upgraded(**NEW)
        assert server.ask(body(2)).json()["system_fingerprint"] == "new"
        os.kill(server.pid, signal.SIGKILL)
        await server.logs("this one is back")
        assert server.ask(body(2)).json()["system_fingerprint"] == "old"
        assert not reading.cut
        # The old one is killed before the new one is there, which goes on alone.
        server.change(**slow)
        os.kill(server.first, signal.SIGHUP)
        await server.logs(COMING_UP, 3)
        await server.until(lambda: _successor(server))
        new = _successor(server)
        await asyncio.sleep(0.5)
        os.kill(server.first, signal.SIGKILL)
        await task
        assert reading.cut
        assert server.ask(body(2)).status_code == 200
        await server.logs("goes on alone")
        # Told to stop while another is coming up, both end.
        server.change()
        os.kill(new, signal.SIGHUP)
        await server.logs(COMING_UP, 4)
        os.kill(new, signal.SIGTERM)
        await server.until(lambda: not server.server.pids(), 20)


def _successor(server: Upgradable) -> int:
    """The process that is to take over, once it is one of ours."""
    for pid in _below(server.first):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"serve" in words:
            return pid
    return 0


async def test_one_after_the_other_and_the_end_of_all(cache_dir: Path, tmp_path: Path) -> None:
    """A third takes over from the second while the first still answers; SIGTERM ends all three."""
    with upgradable(tmp_path, cache_dir, "--durable", "--grace", "2", script=OLD) as server:
        first, reading_first = await begun(server, LONG)
        await server.upgraded(**NEW)
        second, reading_second = await begun(server, LONG)
        third = {**NEW, "fingerprint": "third", "text": "Neither. "}
        await server.upgraded(**third)
        assert server.ask(body(2)).json()["system_fingerprint"] == "third"
        for reading in (first, second):
            got = await some_of(server, "GET", f"/v1/streams/{reading.id}", {})
            assert events_of(reading.raw).startswith(got.text)
        assert (first.fingerprint, second.fingerprint) == ("old", "new")
        os.kill(server.pid, signal.SIGTERM)
        await asyncio.gather(reading_first, reading_second)
        await server.until(lambda: not server.server.pids(), 20)


@pytest.mark.parametrize("comes_up", [True, False])
async def test_where_the_memory_holds_one_engine(
    cache_dir: Path, tmp_path: Path, comes_up: bool
) -> None:
    """The old one's ends first; who asks meanwhile waits, whatever comes of it."""
    with upgradable(tmp_path, cache_dir, script=OLD, ONE_ENGINE="1") as server:
        reading, task = await begun(server, 60)
        fails = {} if comes_up else {"fail_start": "no"}
        server.change(**{**NEW, **fails})
        server.hang_up()
        await server.logs("doesn't hold the engines")
        async with httpx.AsyncClient(timeout=60) as client:
            answers = await asyncio.gather(
                *(client.post(f"{server.url}/v1/chat/completions", json=body(3)) for _ in range(8))
            )
        assert {each.status_code for each in answers} == {200}
        told = {json.loads(each.text)["system_fingerprint"] for each in answers}
        # The old one takes connections for a moment yet, while it says so.
        assert told <= ({"old", "new"} if comes_up else {"old"})
        await task
        assert reading.done
        if comes_up:
            await server.gone(server.first)
            assert server.ask(body(3)).json()["system_fingerprint"] == "new"
        else:
            await server.logs("did not come up")
            assert server.pid == server.first


async def test_what_is_left_at_the_end_of_the_time(cache_dir: Path, tmp_path: Path) -> None:
    """Of a server that loads its model when it is asked for."""
    flags = ("--handover-grace", "1", "--keep-alive", "300", "--memory-budget", "1100MiB")
    with upgradable(tmp_path, cache_dir, *flags, script=OLD) as server:
        reading, task = await begun(server, LONG)
        server.change()
        server.hang_up()
        await server.until(lambda: server.pid != server.first)
        await task
        assert "stopping" in reading.error
        await server.gone(server.first)
        assert server.ask(body(2)).status_code == 200
