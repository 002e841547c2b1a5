"""The server is started and ended at random moments: nothing is ever left behind.

20 cycles; MAESTRALE_TEST_CYCLES=200 asks for more. Each has its number as its random seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import httpx
import pytest

from faults import CHAT
from serving import MARK, Server, clean_environment, free_port

pytestmark = [pytest.mark.model, pytest.mark.slow]

CYCLES = int(os.environ.get("MAESTRALE_TEST_CYCLES", "20"))
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
BODY = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}


@pytest.fixture(scope="module")
def own_cache(
    cache_dir: Path, prepared_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy that no other test writes to, with the model prepared."""
    copy = tmp_path_factory.mktemp("cycles") / "cache"
    # Links as links: those to the folders of other tests lead nowhere by now.
    return Path(shutil.copytree(cache_dir, copy, symlinks=True))


@pytest.mark.parametrize("number", range(CYCLES))
def test_nothing_is_left_behind(own_cache: Path, tmp_path: Path, number: int) -> None:
    draw = random.Random(number)
    files = folder_names(own_cache)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    server = start(own_cache, tmp_path)
    how = SIGNALS[number % 3]
    try:
        if number % 4 < 2:  # at any moment of the start
            time.sleep(draw.uniform(0, 3))
        else:
            server.wait_until_healthy(120)
            if number % 4 == 3:  # while it answers
                work(server)
                time.sleep(draw.uniform(0, 0.3))
        server.process.send_signal(how)
        if draw.random() < 0.3:
            time.sleep(draw.uniform(0, 0.2))
            with contextlib.suppress(ProcessLookupError):
                server.process.send_signal(how)
        code = server.process.wait(60)
    finally:
        left = await_gone(server)
    log = server.log()
    assert not left, f"processes outlived the server: {left}\n{log}"
    assert code in (0, -how, 128 + how), log
    # Python itself, before it runs anything of ours, answers a SIGINT with a traceback.
    assert "Traceback" not in log or (how == signal.SIGINT and "src/maestrale" not in log), log
    assert not list(temporary.iterdir())
    assert folder_names(own_cache) == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server.log", "tmp"]
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", int(server.url.rpartition(":")[2])))
        again.listen()


def start(cache_dir: Path, folder: Path) -> Server:
    """Begin to serve, in `folder`, with the folder's `tmp` for temporary files."""
    port, mark = free_port(), uuid.uuid4().hex
    log_file = folder / "server.log"
    command = [sys.executable, "-m", "maestrale", "serve", "--engine", "scripted"]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--cache-dir", str(cache_dir)],
            cwd=folder,
            env=clean_environment(**{MARK: mark, "TMPDIR": str(folder / "tmp")}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(f"http://127.0.0.1:{port}", process, log_file, mark)


def work(server: Server) -> None:
    """Four clients that ask again and again until they are refused or cut off."""

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError):
            while httpx.post(server.url + CHAT, json=BODY, timeout=30).status_code == 200:
                pass

    for _ in range(4):
        threading.Thread(target=ask, daemon=True).start()


def folder_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def await_gone(server: Server) -> list[int]:
    """The processes that are still there after five seconds; they are ended then."""
    deadline = time.monotonic() + 5
    while (left := server.pids()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left
