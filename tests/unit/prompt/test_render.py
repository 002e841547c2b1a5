"""`maestrale render`: the prompt and ids of a request, without weights for Mistral's models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maestrale.cli.main import run

GIST = "Keep your answers to 20 words or less. What is the plot of movie Lion king ? "
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    file = tmp_path / "messages.json"
    file.write_text(json.dumps([{"role": "user", "content": GIST}]))
    return file


def test_json_has_prompt_ids_and_count(messages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["render", "--model", MISTRAL, "--json", str(messages)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["prompt"] == f"<s>[INST] {GIST} [/INST]"
    assert shown["count"] == len(shown["token_ids"]) == 29
    assert shown["token_ids"].count(1) == 1


def test_a_person_sees_prompt_and_ids(messages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["render", "--model", MISTRAL, str(messages)]) == 0
    out = capsys.readouterr().out
    assert f"<s>[INST] {GIST} [/INST]\n" in out
    assert "29 tokens: 1 733 16289 28793" in out


def test_a_whole_request_is_taken_with_its_model_and_safe_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {
        "model": MISTRAL,
        "messages": [{"role": "user", "content": "Hi"}],
        "safe_prompt": True,
        "temperature": 0.7,
        "random_seed": 3,
    }
    file = tmp_path / "body.json"
    file.write_text(json.dumps(body))
    assert run(["render", "--json", str(file)]) == 0
    prompt = json.loads(capsys.readouterr().out)["prompt"]
    assert prompt.startswith("<s>[INST] Always assist with care")
    assert prompt.endswith("\n\nHi [/INST]")


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "empty"), ("{", "not valid JSON"), ("[]", "messages"), ('{"messages": 1}', "messages")],
)
def test_a_bad_file_is_one_clear_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content)
    assert run(["render", "--model", MISTRAL, str(file)]) == 1
    assert said in capsys.readouterr().err


def test_a_missing_file_is_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["render", "--model", MISTRAL, "/nowhere/at-all.json"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_byte_order_mark_and_names_of_any_bytes_are_fine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "m\udcff.json"
    file.write_bytes(b"\xef\xbb\xbf" + b'[{"role":"user","content":"Hi"}]')
    assert run(["render", "--model", MISTRAL, "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "<s>[INST] Hi [/INST]"


@pytest.mark.model
def test_a_request_that_turns_thoughts_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ 'open' if enable_thinking else 'closed' }}{# <think></think> #}")
    for asked, shown in ((True, "open"), (False, "closed")):
        body = {"messages": [{"role": "user", "content": "Hi"}], "enable_thinking": asked}
        (tmp_path / "body.json").write_text(json.dumps(body))
        flags = ["--chat-template", str(template), "--json", str(tmp_path / "body.json")]
        assert run(["render", *flags]) == 0
        assert json.loads(capsys.readouterr().out)["prompt"] == shown
