"""`maestrale chat` against the API on the scripted engine: keys, failures, hostile output."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from api_app import Api, api, make_settings
from pseudo_terminal import in_terminal
from serving import clean_environment, free_port

pytestmark = pytest.mark.anyio
CHAT = [sys.executable, "-m", "maestrale", "chat"]


async def run(
    url: str, text: str, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, [*CHAT, url, *flags], input=text, capture_output=True, text=True,
        env=clean_environment(**environment), timeout=60,
    )  # fmt: skip


def address(server: Api) -> str:
    return str(server.client.base_url)


async def test_keys() -> None:
    async with api(make_settings(api_key=("right",)), over_http=True) as server:
        url = address(server)
        without = await run(url, "Hello\n")
        assert without.returncode == 1
        assert "asks for a key (401" in without.stderr
        assert "MAESTRALE_API_KEY" in without.stderr
        wrong = await run(url, "Hello\n", "--api-key", "wrong")
        assert wrong.returncode == 1
        assert "refuses the key that was given (401" in wrong.stderr
        assert "wrong" not in wrong.stderr.replace("Incorrect", "")
        unfit = await run(url, "Hello\n", "--api-key", "schlüssel")
        assert unfit.returncode == 1
        assert "Traceback" not in unfit.stderr
        assert (await run(url, "Hello\n", "--api-key", "right")).returncode == 0
        assert (await run(url, "Hello\n", MAESTRALE_API_KEY="right")).returncode == 0


async def test_the_url_may_end_in_v1_or_lack_its_scheme() -> None:
    async with api(options={"text": "hello"}, over_http=True) as server:
        url = address(server)
        for spelled in (f"{url}/v1/", url.removeprefix("http://"), f":{url.rpartition(':')[2]}"):
            done = await run(spelled, "Hello\n")
            assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr


async def test_a_server_that_fails_in_the_midst() -> None:
    async with api(options={"lose_at_token": "3"}, over_http=True) as server:
        done = await run(address(server), "Hello\nAnd then?\n")
    assert done.returncode == 1
    assert "engine" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1  # what had come is shown; nothing was asked after it


def seen(server: str, question: str) -> bytes:
    """All that a terminal is sent while one question is asked."""
    with in_terminal([*CHAT, server, "--no-history"], clean_environment()) as one:
        one.wait_for("> ")
        one.enter(question)
        one.wait_for("(?s)(tokens/s|seed).*?> ")
        one.settle()
        one.control("d")
        one.wait_for_end()
        return one.raw


async def test_a_model_cannot_write_to_the_terminal_what_it_likes() -> None:
    text = "a\x1b[2Jb\x07c\x9bd\te"
    async with api(options={"text": text}, over_http=True) as server:
        shown = await asyncio.to_thread(seen, address(server), "Hello")
    assert "a\N{REPLACEMENT CHARACTER}[2Jb".encode() in shown
    assert b"\x1b[2J" not in shown
    assert b"\x07" not in shown
    assert b"\xc2\x9b" not in shown


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
async def test_input_and_output_that_are_no_text(locale: str) -> None:
    async with api(options={"text": "h\u00e9!"}, over_http=True) as server:
        done = await asyncio.to_thread(
            subprocess.run,
            [*CHAT, address(server)],
            input=b"\xff\xfe hello\n",
            capture_output=True,
            env=clean_environment(LC_ALL=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"h")
    assert done.stdout.endswith(b"!\n")


async def test_what_is_no_chat_api() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\n<ht>")
        await writer.drain()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(handle, "127.0.0.1", port):
        done = await run(f"127.0.0.1:{port}", "Hello\n")
    assert done.returncode == 1
    assert "not as a chat API" in done.stderr


async def test_it_waits_for_a_server_that_starts() -> None:
    """503 at first, then a model: the reasons are told on stderr, once each."""
    answers: list[tuple[str, Any]] = [
        ("503 Service Unavailable", '{"error": {"message": "The model is being converted."}}'),
        ("503 Service Unavailable", '{"error": {"message": "The model is being converted."}}'),
        ("200 OK", '{"data": [{"id": "m"}]}'),
    ]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status, body = answers.pop(0)
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write((head + body).encode())
        await writer.drain()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(handle, "127.0.0.1", port):
        done = await run(f"127.0.0.1:{port}", "")
    assert done.returncode == 0
    assert done.stderr == "The model is being converted.\n"
    assert not answers


async def test_thoughts_are_dimmed_and_no_part_of_a_piped_answer() -> None:
    text = "<think>Hm, \x1b[2J.</think>Yes."
    async with api(options={"text": text}, over_http=True, thinks=True) as server:
        done = await run(address(server), "Well?\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, "Yes.\n", "")
        shown = await asyncio.to_thread(seen, address(server), "Well?")
    assert b"\x1b[2mH\x1b[0m" in shown or b"\x1b[2mHm" in shown
    assert b"\x1b[2J" not in shown
    assert shown.count(b"Yes.") == 1
    assert b"think>" not in shown
