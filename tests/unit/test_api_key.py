"""Where the clients take their key from."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fake_chat_server import fake_chat_server
from maestrale.cli import bench, chat, verify

KEY = "sk-right"
COMMANDS = {
    "chat": (chat.command, ("-m", "What is the opposite of hot?")),
    "verify": (verify.command, ("--folder", "Is it up")),
    "bench": (bench.command, ("--requests", "1", "--concurrency", "1", "--warm-up", "0")),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("text", [KEY, f"{KEY}\n", f"  {KEY}\r\nsecond line\n", f"\ufeff{KEY}\n"])
def test_a_file_holds_the_key(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    command, options = COMMANDS[name]
    with fake_chat_server(key=KEY) as fake:
        done = CliRunner().invoke(command, [fake.url, *options, "--api-key-file", str(file)])
        refused = CliRunner().invoke(command, [fake.url, *options])
        assert f"Bearer {KEY}" in fake.authorizations
    assert "asks for a key" not in done.output
    assert refused.exit_code != 0 or refused.return_value != 0
    assert KEY not in done.output


@pytest.mark.parametrize("name", COMMANDS)
def test_files_that_hold_none(name: str, tmp_path: Path) -> None:
    command, _ = COMMANDS[name]
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    for path, message in (
        (empty, "is empty"),
        (binary, "is no text"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (Path("~nobody-of-that-name/x"), "can't be read"),
    ):
        done = CliRunner().invoke(command, ["http://127.0.0.1:9", "--api-key-file", str(path)])
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())


def test_a_key_is_given_once(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    options = ["--api-key-file", str(file), "--api-key", "other"]
    done = CliRunner().invoke(chat.command, options)
    assert done.exit_code == 2
    assert "Give the key once" in done.output


def test_a_file_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAESTRALE_API_KEY", "sk-other")
    file = tmp_path / "key"
    file.write_text(KEY)
    command, options = COMMANDS["verify"]
    with fake_chat_server(key=KEY) as fake:
        CliRunner().invoke(command, [fake.url, *options, "--api-key-file", str(file)])
        assert set(fake.authorizations) >= {f"Bearer {KEY}"}
        assert "Bearer sk-other" not in fake.authorizations


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_that_others_see_the_command_line(name: str) -> None:
    command, _ = COMMANDS[name]
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert "other users of this machine can see it (ps)" in text
    assert "--api-key-file" in text
