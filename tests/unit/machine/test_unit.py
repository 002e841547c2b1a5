"""The systemd unit: what systemd itself says of it, what it carries, and what it must not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from maestrale.cli import service as cli
from maestrale.cli.service import command, read_options, secrets_for, serve_words
from maestrale.errors import ServiceError, SettingsError
from maestrale.machine import service
from maestrale.machine.unit import Container, Program, environment_text, quote, unit

SERVE = ["--model", "mistralai/Mistral-7B-Instruct-v0.2", "--max-num-seqs", "8"]
# An executable that is there, as `systemd-analyze verify` wants it.
HOWS: dict[str, Container | Program] = {
    "container": Container(image="maestrale:0.1.0-cpu", docker="/bin/true"),
    "gpus": Container(image="maestrale:0.1.0-cuda", docker="/bin/true", gpus=True),
    "venv": Program(python=sys.executable),
    "checkout": Program(python=sys.executable, paths="/srv/a b/%src", gpus=True),
    "low port": Program(python=sys.executable, low_port=True),
}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("kind", HOWS)
def test_systemd_takes_it_and_finds_it_closed(kind: str, tmp_path: Path) -> None:
    text = unit("maestrale", HOWS[kind], SERVE)
    service.verify_unit("maestrale", text)
    path = tmp_path / "maestrale.service"
    path.write_text(text)
    # 0 is closed, 10 is open; an ordinary service has 9.6.
    rating = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", str(path)]
    done = subprocess.run(rating, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_what_systemd_would_not_take_is_not_written() -> None:
    text = unit("maestrale", HOWS["venv"]).replace("Type=exec", "Typo=exec")
    with pytest.raises(ServiceError, match="Typo"):
        service.verify_unit("maestrale", text)


def test_it_starts_what_was_asked_for() -> None:
    text = unit("chat", Container(image="i:1", publish="10.0.0.1:80", gpus=True), SERVE)
    (start,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert start.startswith("/usr/bin/docker run --rm --name chat --publish 10.0.0.1:80:8000 ")
    assert start.endswith(" --gpus all --ipc host i:1 " + " ".join(SERVE))
    text = unit("chat", Program(python="/opt/m/bin/python"), SERVE)
    assert f"ExecStart=/opt/m/bin/python -P -m maestrale serve {' '.join(SERVE)}\n" in text


def test_a_reload_is_an_upgrade_where_another_process_may_take_over() -> None:
    program = unit("chat", HOWS["venv"])
    assert "\nExecReload=/bin/sh -c 'kill -HUP ${MAINPID}'\n" in program
    assert "\nNotifyAccess=all\n" in program
    assert "\nFileDescriptorStoreMax=" in program
    container = unit("chat", HOWS["container"])
    assert "ExecReload" not in container
    assert "NotifyAccess" not in container


def test_memory_and_processes_are_bounded() -> None:
    program = unit("chat", HOWS["venv"])
    assert "\nMemoryMax=90%\n" in program
    assert "\nTasksMax=4096\n" in program
    bounded = unit("chat", Container(image="i:1", memory=10 << 30))
    assert f" --memory {9 << 30} " in bounded
    assert " --pids-limit 4096 " in bounded
    assert "\nMemoryMax=" in bounded  # of docker's client, which is no more than that
    assert "\nTasksMax=" in bounded
    assert "--memory" not in unit("chat", Container(image="i:1"))


def test_restarts_wait_longer_each_time_where_systemd_can() -> None:
    assert "RestartSteps=" in unit("maestrale", HOWS["venv"], systemd=254)
    older = unit("maestrale", HOWS["venv"], systemd=252)
    assert "RestartSteps=" not in older
    assert "RestartSec=10s" in older


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("plain", "plain"), ("a b", '"a b"'), ("50%$", "50%%$$"), ('a"\\', '"a\\"\\\\"'), ("", '""')],
)
def test_words_mean_what_they_say(word: str, quoted: str) -> None:
    assert quote(word) == quoted


def test_a_line_break_starts_no_line_of_its_own() -> None:
    with pytest.raises(ServiceError):
        unit("maestrale", HOWS["venv"], ["--model", "x\nUser=root"])
    with pytest.raises(ServiceError):
        environment_text({"HF_TOKEN": "x\nLD_PRELOAD=/tmp/evil"})


def test_options_are_read_as_serve_reads_them() -> None:
    settings, given = read_options(("some/model", "--max-num-seqs", "8", "--no-deterministic"))
    assert settings.max_num_seqs == 8
    words = ["--model", "some/model", "--no-deterministic", "--max-num-seqs", "8"]
    assert serve_words(settings, given, container=False) == words
    with pytest.raises(SettingsError, match="--max-num-seqs"):
        read_options(("--max-num-seqs", "many"))


def test_secrets_stay_out_of_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--host", "0.0.0.0", "--api-key", "sk-secret-one,sk-secret-two")
    settings, given = read_options(options)
    assert serve_words(settings, given, container=False) == ["--host", "0.0.0.0"]
    secrets = secrets_for(settings, False, {"HF_TOKEN": "hf_x"}, {})
    assert secrets.values == {
        "MAESTRALE_API_KEY": "sk-secret-one,sk-secret-two",
        "HF_TOKEN": "hf_x",
    }
    assert secrets.made == ""
    printed = CliRunner().invoke(command, ["install", "--print", *options])
    assert printed.exit_code == 0, printed.output
    assert "secret" not in printed.output


@pytest.mark.parametrize(
    ("options", "container", "kept", "made"),
    [
        ((), False, {}, False),
        ((), True, {}, True),
        (("--host", "0.0.0.0"), False, {}, True),
        (("--host", "0.0.0.0", "--no-auth"), False, {}, False),
        (("--host", "0.0.0.0"), False, {"MAESTRALE_API_KEY": "sk-kept-from-before"}, False),
    ],
)
def test_when_a_key_is_made(
    options: tuple[str, ...], container: bool, kept: dict[str, str], made: bool
) -> None:
    settings, _ = read_options(options)
    secrets = secrets_for(settings, container, {}, kept)
    assert bool(secrets.made) == made
    assert kept.items() <= secrets.values.items()


def test_in_a_container_the_address_is_the_machines() -> None:
    options = ["--host", "10.0.0.1", "--port", "9000", "--max-num-seqs", "2"]
    printed = CliRunner().invoke(command, ["print", "--container", "i:1", *options])
    assert "--publish 10.0.0.1:9000:8000" in printed.output
    assert printed.output.count("9000") == 1
    assert " i:1 --max-num-seqs 2\n" in printed.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["install", "--name", "A b"], "can't be a service's name"),
        (["install", "--container", "i:1", "--chat-template", "/etc/hostname"], "doesn't see"),
        (["install", "--container", "i:1", "--model", "/etc/hostname"], "doesn't see"),
        (["install", "--config", "x.toml"], "takes no --config"),
        (["install", "--max-num-seq", "2"], "--max-num-seqs"),
    ],
)
def test_what_can_not_be_a_service(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code != 0
    assert said in result.output + str(result.exception)


def test_without_systemd_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service, "BOOTED", tmp_path / "not-there")
    for arguments in (["install"], ["uninstall"], ["status"]):
        result = CliRunner().invoke(command, arguments)
        assert isinstance(result.exception, ServiceError)
        assert "not run by systemd" in str(result.exception)


def test_an_installation_that_others_cannot_read(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "bin").mkdir(parents=True)
    python = closed / "bin/python"
    python.touch(mode=0o755)
    closed.chmod(0o700)
    with pytest.raises(ServiceError, match="closed to others"):
        service.check_program(Program(python=str(python)))


def test_the_environment_file_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.env"
    monkeypatch.setattr(service, "environment_file", lambda name: str(path))
    values = {"MAESTRALE_API_KEY": 'a"b\\c$d', "HF_TOKEN": "hf_x"}
    path.write_text(environment_text(values))
    assert service.kept_secrets("x") == values
    assert cli.INACTIVE == 3
