"""Our clients against servers that send too much, or what a terminal would obey."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import hostile_servers as hostile
from maestrale.cli.doctor_server import server_findings
from maestrale.config.settings import Settings
from serving import clean_environment

MOST_MEMORY = 400 << 20  # bytes; the programs themselves take 60 to 130 MB
SECONDS = 60.0
CLIENTS = {
    "chat": ("chat", "-m", "Hello"),
    "bench": ("bench", "--requests", "2", "--concurrency", "2", "--warm-up", "0"),
    "verify": ("verify", "--timeout", "20", "--folder", "Streaming"),
}
PULL = ("pull", "--engine", "vllm", "org/model")
ESCAPES = "a\x1b]52;c;eA==\x07b\u202ec\x9b2Jd\r\x1b[2J"


@dataclass
class Done:
    """How a client ended. `memory`: the most that it had, in bytes."""

    code: int
    out: str
    err: str
    memory: int

    @property
    def said(self) -> str:
        return self.out + self.err


# A child's largest memory begins with what its parent had: so this one has little.
MEASURED = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(used.ru_maxrss * 1024))
sys.exit(os.waitstatus_to_exitcode(status) % 256)
"""


def run(client: str, url: str, folder: Path, *more: str) -> Done:
    arguments = [*PULL] if client == "pull" else [*CLIENTS[client], url]
    memory = folder / "memory"
    command = [sys.executable, "-m", "maestrale", *arguments, *more]
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(memory), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=clean_environment(HF_ENDPOINT=url, HF_HOME=str(folder / "hub")),
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"{client} did not end within {SECONDS:g} s")
    return Done(done.returncode, done.stdout, done.stderr, int(memory.read_text()))


def assert_clean(done: Done) -> None:
    assert "Traceback" not in done.said
    assert "unforeseen" not in done.said
    for sign in ("\x1b", "\x07", "\x9b", "\u202e", "\r"):
        assert sign not in done.said, repr(done.said)


@pytest.mark.parametrize("client", [*CLIENTS, "pull"])
@pytest.mark.parametrize(
    "behave",
    [
        hostile.huge_list,
        hostile.nested_list,
        hostile.gzip_bomb,
        hostile.endless,
        hostile.endless_head,
        hostile.endless_headers,
        hostile.redirects_elsewhere,
        hostile.redirects_with_a_body,
        hostile.escapes,
        hostile.hub_words,
    ],
    ids=lambda behave: behave.__name__,
)
def test_whatever_comes_first(client: str, behave: hostile.Behaviour, tmp_path: Path) -> None:
    with hostile.misbehaving(behave) as url:
        done = run(client, url, tmp_path)
    assert done.code in (1, 2), done.said
    assert done.said.strip()
    assert_clean(done)
    assert done.memory < MOST_MEMORY, f"{done.memory >> 20} MB"


STREAMS = {
    "a line": hostile.streaming(b"data: ", b"x" * 65536, endless=True),
    "a line after text": hostile.streaming(
        hostile.event("a"), b"data: ", b"x" * 65536, endless=True
    ),
    "an event": hostile.streaming(b"data: x\n" * 8192, endless=True),
    "comments": hostile.streaming(b": x\n\n" * 10_000, endless=True),
    "text": hostile.streaming(hostile.event("word " * 5000), endless=True),
    "pieces": hostile.streaming(hostile.event("a") * 1000, endless=True),
    "finish reasons": hostile.streaming(
        b'data: {"choices":[{"delta":{},"finish_reason":"%s"}]}\n\n' % (b"x" * 60000), endless=True
    ),
    "numbers": hostile.streaming(
        hostile.event("a"),
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%s}}\n\n'
        % (b"9" * 400)
        + b"data: [DONE]\n\n",
    ),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_without_an_end(client: str, stream: hostile.Behaviour, tmp_path: Path) -> None:
    with hostile.misbehaving(stream) as url:
        done = run(client, url, tmp_path, *(() if client == "chat" else ("--model", "m")))
    assert done.code in (1, 2), done.said[-1000:]
    assert_clean(done)
    assert done.memory < MOST_MEMORY, f"{done.memory >> 20} MB"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_model_that_writes_escape_sequences(client: str, tmp_path: Path) -> None:
    stream = hostile.streaming(hostile.event(ESCAPES), hostile.LAST)
    with hostile.misbehaving(stream) as url:
        done = run(client, url, tmp_path)
    assert_clean(done)
    if client == "chat":
        assert done.code == 0
        assert done.out.startswith("a\N{REPLACEMENT CHARACTER}]52;c;eA==")


def whole(body: str) -> hostile.Behaviour:
    """Answers everything with this JSON."""

    def behave(peer: socket.socket, stop: threading.Event) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body.encode())

    return behave


@pytest.mark.parametrize(
    "behave",
    [
        hostile.endless,
        hostile.gzip_bomb,
        hostile.nested_list,
        hostile.drip,
        hostile.escapes,
        hostile.redirects_elsewhere,
        whole('{"api_processes": []}'),
        whole('{"api_processes": 5, "state": []}'),
        whole('{"api_processes": [], "state": "ready", "now": 7}'),
        whole('{"api_processes": [], "state": "ready", "api_nodes": [7], "replicas": 7}'),
    ],
)
def test_doctor_takes_no_other_program_for_a_server(behave: hostile.Behaviour) -> None:
    with hostile.misbehaving(behave) as url:
        begun = time.monotonic()
        assert server_findings(Settings(port=int(url.rpartition(":")[2])), local=True) == []
        assert time.monotonic() - begun < 10


def test_doctor_shows_a_servers_words_on_one_line() -> None:
    names = ["m\x1b[2J\nforged: ok"]
    status = {"api_processes": [1], "state": "ready", "models": names, "now": None}
    with hostile.misbehaving(whole(json.dumps(status))) as url:
        (found,) = server_findings(Settings(port=int(url.rpartition(":")[2])), local=True)
    assert found.state == "ok"
    assert "\x1b" not in found.what
    assert "\n" not in found.what
