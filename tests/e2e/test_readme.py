"""What the README shows is run as it stands, against the real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from serving import ROOT, Server, clean_environment

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
CURL = [code for language, code in BLOCKS if language == "sh" and code.startswith("curl")]

pytestmark = pytest.mark.model


def run(command: list[str], code: str, server: Server) -> str:
    moved = code.replace("http://127.0.0.1:8000", server.url)
    assert moved != code
    done = subprocess.run(
        [*command, moved], env=clean_environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", PYTHON)
def test_python_snippets_print_an_answer(code: str, server: Server) -> None:
    assert run([sys.executable, "-c"], code, server).strip()


def test_the_schema_snippet_prints_what_the_schema_asks_for(server: Server) -> None:
    [code] = [code for code in PYTHON if "json_schema" in code]
    film = json.loads(run([sys.executable, "-c"], code, server))
    assert set(film) == {"title", "year"}
    assert isinstance(film["year"], int)


def test_the_curl_line_gets_an_answer_with_all_fields(server: Server) -> None:
    [code] = CURL
    first, second = (json.loads(run(["sh", "-c"], code, server)) for _ in range(2))
    assert first["object"] == "chat.completion"
    assert first["usage"]["total_tokens"] == sum(
        first["usage"][key] for key in ("prompt_tokens", "completion_tokens")
    )
    assert first["choices"][0]["message"]["content"] == second["choices"][0]["message"]["content"]


def test_the_page_shows_two_commands_and_three_snippets() -> None:
    commands = [code for language, code in BLOCKS if language == "sh" and "curl" not in code]
    assert commands == ["./maestrale serve\n", "scripts/test\n"]
    assert len(PYTHON) == 3


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
