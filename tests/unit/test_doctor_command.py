"""`maestrale doctor` on this machine: its JSON, its table, the token, access, bad input."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import machines
from maestrale.cli import main as cli
from maestrale.cli.doctor_table import show
from maestrale.machine.doctor import Asked, examine
from maestrale.machine.probe import read_facts
from serving import ROOT
from stand_in_hub import GOOD_TOKEN, STRANGER, Repo, StandInHub, stand_in_hub

CHECKS = [
    "system", "rights", "packages", "restart", "gpu", "driver", "secure-boot", "docker",
    "container-toolkit", "disk", "memory", "processor", "port", "time", "network", "token", "model",
]  # fmt: skip
GATED = Repo({"config.json": b"{}", "model.safetensors": b"w" * 2000, "m-Q4_K_M.gguf": b"g" * 2000},
             gated=True)  # fmt: skip


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MAESTRALE_DEBUG", "HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    with stand_in_hub(org__gated=GATED) as one:
        monkeypatch.setenv("HF_ENDPOINT", one.url)
        yield one


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = cli.run(["doctor", *arguments, "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (1 if document["verdict"] == "problem" else 0)
    return document


def finding(document: dict[str, Any], check: str) -> dict[str, Any]:
    return next(one for one in document["findings"] if one["check"] == check)


def test_the_document_has_each_check_once(capsys: pytest.CaptureFixture[str]) -> None:
    document = doctor(capsys)
    assert (document["schema"], document["target"]) == (1, None)
    assert [one["check"] for one in document["findings"]] == CHECKS
    for one in document["findings"]:
        assert set(one) == {"check", "state", "what", "remedy", "command"}
        assert (one["state"] == "ok") == (one["remedy"] is None)
    states = {one["state"] for one in document["findings"]}
    assert document["verdict"] in states
    assert document["facts"]["system"] == "Linux"
    assert finding(document, "network")["state"] == "warning"
    assert finding(document, "model")["what"] == "smollm2-135m-instruct comes with maestrale."


def test_the_hub_and_the_clock(capsys: pytest.CaptureFixture[str], hub: StandInHub) -> None:
    document = doctor(capsys)
    if document["facts"]["hub"] == "no-tool":
        pytest.skip("there is neither curl nor wget")
    assert finding(document, "network")["what"] == "The model hub can be reached."
    assert abs(document["facts"]["hub_offset"]) <= 2


@pytest.mark.parametrize(
    ("token", "tokens", "models", "says"),
    [
        (None, "ok", "problem", "gated"),
        (GOOD_TOKEN, "ok", "ok", "This account may have org/gated."),
        (STRANGER, "ok", "problem", "no access"),
        ("hf_wrong", "problem", "problem", "refuses the token in HF_TOKEN"),
    ],
    ids=["none", "good", "a stranger's", "wrong"],
)
def test_token_and_access(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    hub: StandInHub,
    token: str | None,
    tokens: str,
    models: str,
    says: str,
) -> None:
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    document = doctor(capsys, "--model", "org/gated")
    assert finding(document, "token")["state"] == tokens
    model = finding(document, "model")
    assert model["state"] == models
    assert says in model["what"]
    if models == "problem":
        assert hub.url in model["remedy"]
    assert token is None or token not in json.dumps(document)
    heads = [path for path in hub.paths("GET") if path.startswith("/storage/")]
    assert heads == []  # only heads: no file was fetched


def test_a_model_that_is_none(capsys: pytest.CaptureFixture[str], hub: StandInHub) -> None:
    assert finding(doctor(capsys, "--model", "org/none"), "model")["state"] == "problem"
    assert finding(doctor(capsys, "--model", "no name"), "model")["state"] == "problem"


def test_without_a_network_it_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = finding(doctor(capsys, "--model", "org/any"), "model")
    assert model["state"] == "warning"
    assert model["what"].startswith("http://127.0.0.1:9 can't be reached")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = finding(doctor(capsys, "--model", "org/any"), "model")
    assert model["command"] == "unset HF_HUB_OFFLINE"


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        taken = finding(doctor(capsys, "--service-port", str(port)), "port")
    assert taken["state"] == "problem"
    assert taken["what"].startswith(f"{port} is taken by ")
    free = finding(doctor(capsys, "--service-port", str(port)), "port")
    assert free["what"] == f"{port} is free."


def test_the_table_ends_with_what_setup_cures(capsys: pytest.CaptureFixture[str]) -> None:
    text = machines.recorded(*machines.NO_DRIVER, *machines.NO_DOCKER, "toolkit", packages=("", 1))
    asked = Asked("me@gpu")
    facts = read_facts(text)
    show("me@gpu", facts, examine(facts, asked), asked.setup)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "me@gpu"
    assert lines[-1] == (
        "3 problems. maestrale setup me@gpu takes care of: driver, docker, container-toolkit."
    )
    assert any("Install branch 580: maestrale setup me@gpu" in line for line in lines)


def test_here_the_table_fits_its_width(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["doctor"])
    out = capsys.readouterr().out
    assert out.startswith("This machine\n")
    assert max(map(len, out.splitlines())) <= 110
    assert code in (0, 1)


@pytest.mark.parametrize(
    "arguments",
    [["-oProxyCommand=x"], ["me@host", "--port", "0"], ["me@host", "--identity", "/none"],
     ["--port", "22"], ["me@host:1", "--port", "2"], ["--timeout", "1"], ["a", "b"]],
)  # fmt: skip
def test_what_is_called_wrongly_ends_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert cli.run(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err


def test_each_check_is_documented() -> None:
    rows = (ROOT / "docs" / "guide" / "doctor.md").read_text().splitlines()
    told = [row.split("|")[1].split("`")[1::2] for row in rows if row.startswith("| `")]
    assert sorted(name for names in told for name in names) == sorted(CHECKS)
