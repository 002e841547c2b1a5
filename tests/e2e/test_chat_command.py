"""`maestrale chat` with the real model: at a pseudo-terminal, and in pipes."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pseudo_terminal import PseudoTerminal, in_terminal
from serving import Server, clean_environment, free_port

pytestmark = pytest.mark.model

CHAT = [sys.executable, "-m", "maestrale", "chat"]
LONG = "Tell a long story about a lion."
STATISTICS = r"\d+ tokens, first after [\d.]+ s, [\d.]+ tokens/s, seed \d+"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return clean_environment(HOME=str(tmp_path), XDG_STATE_HOME="")


@pytest.fixture
def chat(server: Server, home: dict[str, str]) -> Iterator[PseudoTerminal]:
    with in_terminal([*CHAT, server.url], home) as terminal:
        terminal.wait_for(r"at http://127\.0\.0\.1:\d+\. /help")
        terminal.wait_for(r"> ")
        yield terminal


def piped(
    server: Server, home: dict[str, str], text: str, *flags: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHAT, server.url, *flags], input=text, env=home, capture_output=True, text=True,
        timeout=180,
    )  # fmt: skip


def busy(server: Server) -> bool:
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    return "\nvllm:num_requests_running" in text and not re.search(
        r"^vllm:num_requests_running\{[^}]*\} 0\.0$", text, re.MULTILINE
    )


def test_a_conversation(chat: PseudoTerminal) -> None:
    chat.enter("/max 24")
    chat.wait_for("at most 24 tokens")
    chat.enter("/seed 7")
    chat.wait_for("seed 7 for each answer")
    chat.enter("My name is Ada. Greet me.")
    first = chat.wait_for(rf"(?s)> .*?{STATISTICS}")
    assert "seed 7" in first
    chat.enter("/retry")
    again = chat.wait_for(rf"(?s)> .*?{STATISTICS}")
    assert again.splitlines()[1:-1] == first.splitlines()[1:-1]  # the same seed, the same answer
    chat.enter("/history")
    history = chat.wait_for(r"(?s)user: My name is Ada.*?assistant: .*?> ")
    assert history.count("user:") == 1
    chat.enter("/reset")
    chat.wait_for("a new conversation")
    chat.enter("/history")
    chat.wait_for("(?s)nothing was said yet.*?> ")
    chat.settle()
    chat.control("d")
    assert chat.wait_for_end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: PseudoTerminal, server: Server) -> None:
    # A schema makes the answer long, whatever this small model would like to say.
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 1000}
    chat.enter(f"/json {json.dumps(numbers)}")
    chat.wait_for("answers fit")
    chat.enter("Count.")
    chat.wait_for(r"\[-?\d+, ")
    chat.control("c")
    chat.wait_for(r"\nstopped")
    deadline = time.monotonic() + 10
    while busy(server):
        assert time.monotonic() < deadline, "the server goes on with an answer nobody reads"
        time.sleep(0.1)
    chat.enter("/history")
    assert re.search(r"\[-?\d+, ", chat.wait_for(r"(?s)user: Count\..*?assistant: .*?> "))
    chat.settle()
    chat.control("c")  # at the prompt it does nothing but say how to leave
    chat.wait_for("Ctrl-D or /quit leaves")
    chat.enter("/json off")
    chat.wait_for("answers are text")
    chat.enter("/max 5")
    chat.wait_for("at most 5 tokens")
    chat.enter("Say yes.")
    chat.wait_for(STATISTICS)
    chat.enter("/quit")
    assert chat.wait_for_end() == 0


def test_json_and_system(chat: PseudoTerminal) -> None:
    schema = {
        "type": "object",
        "properties": {"animal": {"type": "string", "maxLength": 12}},
        "required": ["animal"],
        "additionalProperties": False,
    }
    chat.enter("/system You name animals.")
    chat.wait_for("system prompt: You name animals.")
    chat.enter(f"/json {json.dumps(schema)}")
    chat.wait_for("answers fit")
    chat.enter("Name one.")
    answer = chat.wait_for(r'\{\s*"animal": ?"[^"]*"\s*\}')
    assert set(json.loads(answer)) == {"animal"}
    chat.wait_for(STATISTICS)
    chat.enter("/json {broken")
    chat.wait_for("The schema is no JSON")
    chat.enter("/json off")
    chat.wait_for("answers are text")
    chat.enter("/sistem")
    chat.wait_for("There is no command /sistem. Did you mean /system?")


def test_lines_are_edited_and_remembered(
    chat: PseudoTerminal, server: Server, home: dict[str, str], tmp_path: Path
) -> None:
    chat.type("/sy\t")  # completed by the tab key
    chat.wait_for("/system")
    chat.enter("Be curt.")
    chat.wait_for("system prompt: Be curt.")
    chat.wait_for("> ")
    chat.settle()  # from here on keys are read one by one
    chat.type("/sXeed 3\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D\x7f\r")  # five to the left, backspace
    chat.wait_for("seed 3 for each answer")
    chat.wait_for("> ")
    chat.enter('"""')
    chat.wait_for(r"\. ")
    chat.settle()
    chat.control("c")
    chat.wait_for("(?s)leaves.*?> ")
    chat.settle()
    chat.control("d")
    assert chat.wait_for_end() == 0
    kept = tmp_path / ".local/state/maestrale/chat-history"
    assert "/system Be curt." in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with in_terminal([*CHAT, server.url], home) as next_time:
        next_time.wait_for("> ")
        next_time.settle()
        next_time.type("\x1b[A\x1b[A")  # up, twice
        next_time.wait_for("/seed 3")


def test_pipes(server: Server, home: dict[str, str], tmp_path: Path) -> None:
    done = piped(server, home, '/seed 3\n/max 8\nSay yes.\n"""\nSay\nno.\n"""\n')
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.endswith("\n")
    assert "tokens/s" not in done.stdout
    assert "\x1b" not in done.stdout
    same = piped(server, home, "Say yes.", "--seed", "3", "--max-tokens", "8")
    assert done.stdout.startswith(same.stdout)
    assert not (tmp_path / ".local").exists()  # a pipe is no history


def test_one_message(server: Server, home: dict[str, str]) -> None:
    done = piped(server, home, "", "-m", "Name a colour.", "--json", "any", "--max-tokens", "40",
                 "--temperature", "0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{")
    with_input = piped(server, home, "The lion sleeps.", "-m", "Repeat:", "--max-tokens", "8")
    assert with_input.returncode == 0
    assert with_input.stdout.strip()


def test_save_and_load(server: Server, home: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "talk.json"
    told = f"/system Be kind.\n/max 8\nSay yes.\n/save {kept}\n"
    assert piped(server, home, told).returncode == 0
    body = json.loads(kept.read_text())
    assert [each["role"] for each in body["messages"]] == ["system", "user", "assistant"]
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200
    assert piped(server, home, f"/load {kept}\n/max 8\nAnd no.\n").returncode == 0
    assert piped(server, home, "/load /none.json\n").returncode == 1


@pytest.mark.parametrize("what", ["an error in a pipe", "no such model", "no server", "no URL"])
def test_failures_are_one_message(server: Server, home: dict[str, str], what: str) -> None:
    flags, text, told = {
        "an error in a pipe": ((server.url,), "/bogus\nSay yes.\n", "no command /bogus"),
        "no such model": ((server.url, "--model", "gpt-5"), "", "the server has smollm2"),
        "no server": ((f"127.0.0.1:{free_port()}",), "", "maestrale serve"),
        "no URL": (("http://[",), "", "can't be used"),
    }[what]
    done = subprocess.run(
        [*CHAT, *flags], input=text, env=home, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_reader_that_leaves_is_no_failure(server: Server, home: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; echo '{LONG}' | {' '.join(CHAT)} {server.url} "
         "--max-tokens 60 | head -c 1"],
        env=home, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stderr == ""
    assert len(done.stdout) == 1
