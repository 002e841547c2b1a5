"""A real server's beginning and end: keys, ports, draining."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from serving import clean_environment, serving

pytestmark = pytest.mark.model

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Tell a long story."}]


@pytest.mark.usefixtures("prepared_model")
def test_a_key_is_made_and_shown_once_with_a_curl_line(cache_dir: Path) -> None:
    with serving("--engine", "scripted", cache_dir=cache_dir, host="0.0.0.0") as server:
        log = server.log()
        (key,) = re.findall(r"API key \(shown this once\): (sk-maestrale-\S+)", log)
        command = re.findall(r"  (curl .*?}')$", log, re.DOTALL | re.MULTILINE)[0]
        assert f"Authorization: Bearer {key}" in command
        answer = subprocess.run(
            ["/bin/sh", "-c", command], capture_output=True, text=True, check=True, timeout=60
        )
        assert json.loads(answer.stdout)["choices"][0]["finish_reason"]
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_port_in_use_is_a_clear_message(cache_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [sys.executable, "-m", "maestrale", "serve", "--port", port, "--cache-dir",
             str(cache_dir)],
            env=clean_environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert result.returncode != 0
    assert f"Port {port} on 127.0.0.1 is already in use" in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_model")
def test_sigterm_lets_streams_finish_and_refuses_new_requests(cache_dir: Path) -> None:
    with serving(cache_dir=cache_dir) as server:
        lines: list[str] = []
        begun = threading.Event()

        def read() -> None:
            body = {"messages": HELLO, "stream": True, "max_tokens": 120, "ignore_eos": True}
            with httpx.stream("POST", server.url + CHAT, json=body, timeout=120) as answer:
                for line in answer.iter_lines():
                    lines.append(line)
                    begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(60)
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while httpx.get(f"{server.url}/health").json()["status"] != "draining":
            assert time.monotonic() < deadline
        refused = httpx.post(server.url + CHAT, json={"messages": HELLO})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "draining"
        reader.join(120)
        events = [line for line in lines if line.startswith("data: ")]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2][6:])["usage"]["completion_tokens"] == 120
        assert server.process.wait(30) == 0
