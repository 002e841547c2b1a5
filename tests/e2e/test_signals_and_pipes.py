"""Signals and pipes as shells, terminals and service managers leave them to a real server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import ROOT, clean_environment, free_port, serving

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("prepared_model")]

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def command(cache_dir: Path, port: int, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "maestrale", "serve", "--engine", "scripted"),
        *("--cache-dir", str(cache_dir), "--port", str(port), *flags),
    ]


@contextlib.contextmanager
def started(
    cache_dir: Path, tmp_path: Path, *flags: str, **how: Any
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server whose handles are as `how` says; it is healthy."""
    port = free_port()
    environment = clean_environment(XDG_CONFIG_HOME=str(tmp_path))
    process = subprocess.Popen(
        command(cache_dir, port, *flags), env=environment, cwd=tmp_path, **how
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(url, process)
        yield url, process
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        assert process.poll() is None, f"it ended with {process.returncode}"
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url + "/health", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("not healthy")


def asks(url: str) -> int:
    body = {"messages": HELLO, "max_tokens": 3}
    return httpx.post(url + CHAT, json=body, timeout=20).status_code


def test_sighup_to_a_single_process_stops_nothing(cache_dir: Path) -> None:
    with serving("--engine", "scripted", cache_dir=cache_dir) as server:
        server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 10
        while "SIGHUP received" not in server.log():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert asks(server.url) == 200


def test_a_terminal_that_is_closed_ends_the_server(cache_dir: Path, tmp_path: Path) -> None:
    port = free_port()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(
            sys.executable,
            command(cache_dir, port),
            clean_environment(XDG_CONFIG_HOME=str(tmp_path)),
        )
    shown = b""
    try:
        end = time.monotonic() + 90
        while b"Stop: Ctrl-C" not in shown:
            assert time.monotonic() < end
            shown += os.read(terminal, 65536)
        os.close(terminal)
        assert ended(pid, 30)
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ended(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_log_that_nobody_reads_holds_up_no_request(
    cache_dir: Path, tmp_path: Path, workers: str
) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    flags = ("--log-level", "debug", "--api-workers", workers)
    with started(cache_dir, tmp_path, *flags, stdout=subprocess.DEVNULL, stderr=writer) as (
        url,
        process,
    ):
        os.close(writer)
        for _ in range(150):
            assert httpx.get(url + "/v1/models", timeout=5).status_code == 200
        assert asks(url) == 200
        process.terminate()
        assert process.wait(20) == 0
    os.close(reader)


@pytest.mark.parametrize("handles", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_handles_are_no_harm(
    cache_dir: Path, tmp_path: Path, handles: tuple[int, ...]
) -> None:
    def close() -> None:
        for handle in handles:
            os.close(handle)

    with started(cache_dir, tmp_path, preexec_fn=close) as (url, process):
        assert asks(url) == 200
        # Nothing else of the server has one of these numbers.
        for handle in handles:
            assert os.readlink(f"/proc/{process.pid}/fd/{handle}") == "/dev/null"
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_is_gone_stops_no_server(cache_dir: Path, tmp_path: Path, name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    other = "stderr" if name == "stdout" else "stdout"
    how = {name: writer, other: subprocess.DEVNULL}
    with started(cache_dir, tmp_path, **how) as (url, process):
        os.close(writer)
        assert asks(url) == 200
        process.terminate()
        assert process.wait(20) == 0


def running_requests(url: str) -> str:
    """The line of `/metrics` that counts them."""
    lines = httpx.get(url + "/metrics").text.splitlines()
    return next(line for line in lines if line.startswith("vllm:num_requests_running"))


def test_a_stream_that_outlasts_a_reload_ends_with_an_error_event(cache_dir: Path) -> None:
    script = {"tokens_per_second": "50", "length": "4000"}
    environment = {"PYTHONPATH": f"{ROOT}/src:{ROOT}/tests/support", "SCRIPT": json.dumps(script)}
    flags = ("--engine", "scripted", "--api-workers", "2", "--grace", "2")
    with serving(
        *flags, cache_dir=cache_dir, environment=environment, module="scripted_server"
    ) as server:
        end = time.monotonic() + 30
        while "Stop: Ctrl-C" not in server.log():
            assert time.monotonic() < end
            time.sleep(0.05)
        lines: list[str] = []
        begun = threading.Event()

        def read() -> None:
            body = {"messages": HELLO, "stream": True, "max_tokens": 4000, "ignore_eos": True}
            with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as answer:
                for line in answer.iter_lines():
                    lines.append(line)
                    begun.set()

        reading = threading.Thread(target=read)
        reading.start()
        assert begun.wait(20)
        server.process.send_signal(signal.SIGHUP)
        reading.join(60)
        assert not reading.is_alive()
        assert asks(server.url) == 200
        # And the engine works on it no longer.
        ends = time.monotonic() + 5  # the engine tells of itself twice a second
        while not (running := running_requests(server.url)).endswith(" 0.0"):
            assert time.monotonic() < ends, running
            time.sleep(0.1)
    events = [line for line in lines if line]
    assert '"error"' in events[-1]
    assert "--grace" in events[-1]
