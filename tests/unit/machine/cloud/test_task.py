"""The task file's text, and the script in it that tells an idle service."""

from __future__ import annotations

import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from maestrale.machine.cloud import task
from maestrale.machine.cloud.machine_spec import MachineSpec
from maestrale.machine.cloud.offers import Offer
from maestrale.machine.cloud.providers import find_provider
from maestrale.machine.cloud.task import to_yaml

OFFER = Offer("do", "nyc1", "g-2vcpu-8gb", "", 0, 2, 8, False, 0.09)
SPEC = MachineSpec("box", (find_provider("do"),), "", 0, autostop=5)


def test_yaml_holds_what_it_is_given() -> None:
    assert to_yaml({"a": {"b": [1, True, None]}, "c": "x: y", "run": "one\n\n  two\n"}) == (
        'a:\n  b: [1, true, null]\nc: "x: y"\nrun: |\n  one\n\n    two\n'
    )


def test_the_file_never_holds_the_key() -> None:
    text = task.task_yaml(SPEC, OFFER)
    assert "MAESTRALE_API_KEY: null" in text
    assert "sk-" not in text


def test_without_autostop_nothing_runs() -> None:
    text = task.task_yaml(MachineSpec("box", (find_provider("do"),), "", 0), OFFER)
    assert "autostop" not in text
    assert "run:" not in text


class Metrics(BaseHTTPRequestHandler):
    """Counts up to `busy` looks, then stands still."""

    looks = 0
    busy = 0
    key = "sk-watch"

    def do_GET(self) -> None:
        cls = type(self)
        if self.headers["Authorization"] != f"Bearer {cls.key}":
            self.send_error(401)
            return
        cls.looks += 1
        body = (
            "# HELP http_requests_total requests\n"
            f'http_requests_total{{handler="/v1/chat/completions"}} {min(cls.looks, cls.busy)}\n'
            f"process_cpu_seconds_total {cls.looks}\n"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


def watch(tmp_path: Path, port: int, minutes: int, key: str) -> int:
    """Run the script with `sleep 60` counted instead of waited. Returns the minutes it took."""
    run = task.task_yaml(
        MachineSpec("box", (find_provider("do"),), "", 0, autostop=minutes), OFFER
    ).partition("run: |\n")[2]
    count = tmp_path / "minutes"
    (tmp_path / "sleep").write_text(f'#!/bin/sh\n[ "$1" = 60 ] && echo >>{count}\n')
    (tmp_path / "sleep").chmod(0o755)
    script = run.replace(f"127.0.0.1:{task.PORT}", f"127.0.0.1:{port}")
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "MAESTRALE_API_KEY": key},
        check=True,
        timeout=60,
    )
    return len(count.read_text().splitlines())


@pytest.mark.parametrize("busy", [1, 12])
def test_the_machine_is_busy_while_requests_come(tmp_path: Path, busy: int) -> None:
    Metrics.looks, Metrics.busy = 0, busy
    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # The first look always differs from none; then each new request begins the minutes anew.
        assert watch(tmp_path, server.server_port, 5, "sk-watch") == busy + 5
        server.shutdown()


def test_a_service_that_never_answers_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "FIRST_ANSWER_MINUTES", 9)
    assert watch(tmp_path, 9, 5, "sk-watch") == 9
