"""Agents on the command line: each is asked to read a file, calls its tool for it, and answers.

Each runs as its users run it, in a home of its own, with no more than the server's address.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from script import FOUND, MODEL, SAID, SECRET
from serving import Server

SECONDS = 100.0
CODEX = """
model = "{model}"
model_provider = "maestrale"
web_search = "disabled"
[model_providers.maestrale]
name = "maestrale"
base_url = "{url}/v1"
wire_api = "responses"
"""


class Agent:
    """Runs programs from npm in the folder with the file."""

    def __init__(self, npm: Path, workspace: Path, home: Path) -> None:
        self._bin, self._workspace, self.home = npm / ".bin", workspace, home

    def run(self, name: str, *arguments: str, **environment: str) -> str:
        """What it printed. Fails where it fails."""
        done = subprocess.run(
            [self._bin / name, *arguments],
            cwd=self._workspace,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def events(self, name: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
        """The same, one JSON object a line."""
        lines = self.run(name, *arguments, **environment).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture
def agent(npm: Path, workspace: Path, tmp_path: Path) -> Agent:
    return Agent(npm, workspace, tmp_path)


@pytest.mark.parametrize("asked", ["Hello", "Read note.txt with Read."])
def test_claude_code(agent: Agent, scripted: Server, asked: str) -> None:
    flags = ("--output-format", "stream-json", "--verbose")
    events = agent.events(
        "claude", "-p", asked, *flags,
        ANTHROPIC_BASE_URL=scripted.url,
        ANTHROPIC_API_KEY="none",
        ANTHROPIC_MODEL=MODEL,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )  # fmt: skip
    blocks = [
        block
        for event in events
        if event["type"] in ("assistant", "user")
        for block in event["message"]["content"]
    ]
    (result,) = [event for event in events if event["type"] == "result"]
    assert not result["is_error"]
    if asked == "Hello":
        assert [block["type"] for block in blocks] == ["text"]
        assert result["result"] == SAID
    else:
        assert [block["type"] for block in blocks] == ["tool_use", "tool_result", "text"]
        assert SECRET in blocks[1]["content"]
        assert result["result"] == FOUND
        assert result["usage"]["output_tokens"] > 0


@pytest.mark.parametrize("asked", ["Hello", "Read note.txt with exec_command."])
def test_codex(agent: Agent, scripted: Server, asked: str) -> None:
    settings = agent.home / ".codex"
    settings.mkdir()
    (settings / "config.toml").write_text(CODEX.format(model=MODEL, url=scripted.url))
    # Its own sandbox needs rights that a container may not have.
    flags = ("--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    events = agent.events("codex", "exec", *flags, asked)
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    items = [item for item in items if item["type"] != "error"]  # it knows no model but OpenAI's
    assert events[-1]["type"] == "turn.completed"
    assert events[-1]["usage"]["output_tokens"] > 0
    if asked == "Hello":
        assert [item["type"] for item in items] == ["agent_message"]
        assert items[0]["text"] == SAID
    else:
        assert [item["type"] for item in items] == ["command_execution", "agent_message"]
        assert SECRET in items[0]["aggregated_output"]
        assert items[1]["text"] == FOUND


@pytest.mark.parametrize("asked", ["Hello", "Read note.txt with read."])
def test_opencode(agent: Agent, scripted: Server, asked: str) -> None:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{scripted.url}/v1", "apiKey": "none"},
        "models": {MODEL: {"limit": {"context": 100_000, "output": 4096}, "tool_call": True}},
    }
    chosen = {"model": f"maestrale/{MODEL}", "small_model": f"maestrale/{MODEL}"}
    settings = agent.home / ".config" / "opencode"
    settings.mkdir(parents=True)
    (settings / "opencode.json").write_text(
        json.dumps({**chosen, "permission": "allow", "provider": {"maestrale": provider}})
    )
    switches = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS")
    events = agent.events(
        "opencode", "run", "--format", "json", asked,
        **{f"OPENCODE_DISABLE_{switch}": "1" for switch in switches},
    )  # fmt: skip
    parts = {event["type"]: event["part"] for event in events}
    if asked == "Hello":
        assert parts["text"]["text"] == SAID
        assert "tool_use" not in parts
    else:
        assert SECRET in parts["tool_use"]["state"]["output"]
        assert parts["text"]["text"] == FOUND
    assert parts["step_finish"]["tokens"]["output"] > 0


@pytest.mark.parametrize("asked", ["Hello", "Read note.txt with read_file."])
def test_qwen_code(agent: Agent, scripted: Server, asked: str) -> None:
    said = agent.run(
        "qwen", "--auth-type", "openai", "--approval-mode", "yolo", "-p", asked,
        OPENAI_API_KEY="none",
        OPENAI_BASE_URL=f"{scripted.url}/v1",
        OPENAI_MODEL=MODEL,
    )  # fmt: skip
    assert said.strip() == (SAID if asked == "Hello" else FOUND)
