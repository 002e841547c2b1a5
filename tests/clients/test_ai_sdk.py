"""Vercel's AI SDK, with its providers for each API of ours."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from script import MODEL, SAID, SUNNY
from serving import Server

PROVIDERS = ("compatible", "responses", "chat", "mistral", "anthropic")


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def ask(npm: Path, server: Server, provider: str, what: str) -> dict[str, Any]:
    script = npm.with_name("ai_sdk.mjs")
    done = subprocess.run(
        ["node", script, server.url, MODEL, provider, what],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_text(npm: Path, scripted: Server, provider: str) -> None:
    found = ask(npm, scripted, provider, "text")
    assert found["text"] == SAID
    assert found["finish"] == "stop"
    assert found["usage"]["outputTokens"] > 0


def test_a_stream(npm: Path, scripted: Server, provider: str) -> None:
    found = ask(npm, scripted, provider, "stream")
    assert found["text"] == SAID
    assert found["parts"] > 1
    assert found["finish"] == "stop"
    assert found["usage"]["outputTokens"] > 0


@pytest.mark.parametrize("what", ["tool", "toolStream"])
def test_a_tool(npm: Path, scripted: Server, provider: str, what: str) -> None:
    found = ask(npm, scripted, provider, what)
    assert found["asked"] == ["Lyon"]
    assert found["text"].endswith(SUNNY)


def test_an_object(npm: Path, scripted: Server, provider: str) -> None:
    found = ask(npm, scripted, provider, "object")
    assert found["object"] == {"name": "Ada", "age": 36}
