"""`serve --replicas` on one machine: it answers, its Ray is closed to others, nothing stays."""

from __future__ import annotations

import os
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

from serving import Server, clean_environment, serving

pytestmark = pytest.mark.slow
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
LISTEN = "0A"


@pytest.fixture(scope="module")
def replicas(cache_dir: Path) -> Iterator[Server]:
    with serving("--replicas", "2", "--engine", "scripted", cache_dir=cache_dir) as server:
        yield server


def sockets(pids: list[int]) -> set[str]:
    """The inodes of their sockets."""
    found = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def listening(pids: list[int]) -> list[tuple[str, int]]:
    """(address as the kernel writes it, port) of all that these processes listen on."""
    ours = sockets(pids)
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in ours:
                address, port = fields[1].split(":")
                found.append((address, int(port, 16)))
    return found


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def ask(server: Server, tokens: int = 200, model: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello"}]
    body = {"messages": messages, "max_tokens": tokens, "seed": 3}
    body |= {"model": model} if model else {}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def test_it_answers_also_while_an_engine_dies(replicas: Server) -> None:
    calm = ask(replicas)
    answers: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(replicas))) for _ in range(8)]
    for thread in threads:
        thread.start()
    engines = [pid for pid in replicas.pids() if "supervise.worker" in command(pid)]
    os.kill(engines[0], signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert answers == [calm] * 8


def test_all_of_ray_listens_on_loopback(replicas: Server) -> None:
    pids = replicas.pids()
    assert any("gcs_server" in command(pid) for pid in pids)
    there = listening(pids)
    assert len(there) > 5
    assert {address for address, _ in there} <= LOOPBACK


@pytest.mark.parametrize("token", ["", "0" * 64], ids=["no token", "another token"])
def test_who_has_not_the_token_is_refused(replicas: Server, token: str, tmp_path: Path) -> None:
    gcs = next(pid for pid in replicas.pids() if "gcs_server" in command(pid))
    arguments = command(gcs).split()
    port = next(a.partition("=")[2] for a in arguments if a.startswith("--gcs_server_port="))
    if port in ("", "0"):
        port = str(min(each for _, each in listening([gcs])))
    code = f"import ray; ray.init(address='127.0.0.1:{port}'); print('IN', ray.nodes())"
    # Without this Ray would look for 127.0.0.1 at the machine's outer address.
    environment = {"HOME": str(tmp_path), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if token:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    tried = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(**environment, RAY_raylet_start_wait_time_s="5"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert tried.returncode != 0
    assert "IN" not in tried.stdout
    assert "uthenticat" in tried.stderr


def test_each_model_has_its_own_replicas_beside_one_without_any(
    cache_dir: Path, tmp_path: Path
) -> None:
    """Twice the same model on one Ray of our own, from none; and a model that is none of Ray's."""
    table = tmp_path / "several.toml"
    table.write_text("""
[serve]
engine = "scripted"
[[model]]
name = "plain"
source = "smollm2-135m-instruct"
[[model]]
name = "one"
source = "smollm2-135m-instruct"
replicas = "0-1"
[[model]]
name = "two"
source = "smollm2-135m-instruct"
replicas = "0-1"
keep_alive = "1s"
""")
    with serving("--config", str(table), cache_dir=cache_dir) as server:
        wait(server, plain="ready", one="unloaded", two="unloaded")
        assert not any("raylet" in command(pid) for pid in server.pids())
        threads = [threading.Thread(target=ask, args=(server, 8, each)) for each in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait(server, plain="ready", one="ready", two="unloaded")
        ask(server, 8, "one")
        unloaded = httpx.post(f"{server.url}/v1/models/one/unload")
        assert unloaded.status_code == 202
        wait(server, plain="ready", one="unloaded", two="unloaded")
        assert ask(server, 8, "two") == ask(server, 8, "two")
        assert "A replica of two is ready" in server.log()


def wait(server: Server, **states: str) -> None:
    """Until the models' states are so."""
    deadline = time.monotonic() + 60
    while True:
        cards = httpx.get(f"{server.url}/v1/models", timeout=30).json().get("data", [])
        found = {each["id"]: each["state"] for each in cards}
        if found == states:
            return
        assert time.monotonic() < deadline, (found, server.log())
        time.sleep(0.1)


def test_bad_clusters_are_told_apart(cache_dir: Path, tmp_path: Path) -> None:
    tried = subprocess.run(
        [
            *(sys.executable, "-m", "maestrale", "serve", "--engine", "scripted", "--port", "0"),
            *("--ray-address", "127.0.0.1:9", "--cache-dir", str(cache_dir)),
        ],
        env=clean_environment(HOME=str(tmp_path), RAY_AUTH_TOKEN="0" * 64),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert tried.returncode == 1
    assert "There is no Ray cluster at 127.0.0.1:9" in tried.stderr
    assert "Traceback" not in tried.stderr
