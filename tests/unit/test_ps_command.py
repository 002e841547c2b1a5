from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from maestrale.cli.ps import command, line, models_of, span
from maestrale.errors import MaestraleError

MODELS: list[dict[str, Any]] = [
    {"id": "a", "names": ["chat"], "state": "ready", "memory_bytes": 60 << 20, "last_used": 90,
     "pinned": True, "now": {"running": 2, "waiting": 0}},
    {"id": "coder", "names": [], "state": "unloaded", "memory_bytes": None, "last_used": None,
     "pinned": False, "now": None, "detail": "The model is loaded when a request asks for it."},
]  # fmt: skip


@contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[str]:
    """A server that says this to everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_each_model_has_its_line() -> None:
    with answering(json.dumps({"deployments": MODELS}).encode()) as url:
        shown = CliRunner().invoke(command, [url]).output.splitlines()
        assert json.loads(CliRunner().invoke(command, [f"{url}/v1", "--json"]).output) == MODELS
    assert shown[0].startswith("chat   ready")
    assert "60 MiB" in shown[0]
    assert "pinned  2 running" in shown[0]
    assert shown[1].startswith("coder  unloaded")
    assert "not asked yet  The model is loaded when" in shown[1]
    assert "asked 10 s ago" in line(MODELS[0], 100)


def test_times() -> None:
    assert [span(each) for each in (-1, 3, 200, 7300, 200_000)] == [
        "0 s", "3 s", "3 min", "2 h", "2 d"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{}", 200, "is no maestrale"),
        (b"<html>", 200, "is no maestrale"),
        (b'{"deployments": [3]}', 200, "is no maestrale"),
        (b"", 404, "status 404"),
        (b"", 401, "asks for a key"),
    ],
)
def test_what_answers_otherwise(body: bytes, status: int, words: str) -> None:
    with answering(body, status) as url, pytest.raises(MaestraleError, match=words):
        models_of(url, None)


def test_nobody_answers() -> None:
    with pytest.raises(MaestraleError, match="No server answers at http"):
        models_of("http://127.0.0.1:9", None)
