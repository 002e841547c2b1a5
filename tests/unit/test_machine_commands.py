"""doctor, setup, create and service called wrongly: said in words, with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maestrale.cli.main import run


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("MAESTRALE_CLOUD_PYTHON", raising=False)
    monkeypatch.delenv("MAESTRALE_DEBUG", raising=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("doctor --accept-new-host-key", "--accept-new-host-key is for a machine over SSH"),
        ("doctor --ssh-option ProxyJump=x --port 22", "--port and --ssh-option are for a machine"),
        ("doctor host --ssh-option ProxyJump", "KEY=VALUE"),
        ("doctor host:0", "0 is no port"),
        ("doctor --timeout nan", "no finite number"),
        ("setup --accept-new-host-key", "is for a machine over SSH"),
        ("setup --wait-for-apt nan", "no finite number"),
        ("plan mistral --gpu A5000 --gpu-memory-utilization nan", "no finite number"),
        ("bench http://127.0.0.1:9 --duration inf", "no finite number"),
        ("verify http://127.0.0.1:9 --timeout nan", "no finite number"),
        ("chat http://127.0.0.1:9 --temperature nan", "no finite number"),
        ("setup --source nonsense --dry-run", "an image with its tag"),
        ("setup --source=", "is no source"),
        ("setup --no-proof --source ==1.0", "leave one of them out"),
        ("setup host --cloud-init", "takes no TARGET"),
        ("setup --cloud-init --source git@example.org:me/m.git", "a public address only"),
        ("setup --cloud-init --source https://me:secret@example.org/m.git", "a public address"),
        ("setup --cloud-init --no-proof --port 22", "takes no --no-proof, --port"),
        ("setup --cloud-init --wait-for-apt 9 --verbose", "takes no --wait-for-apt, --verbose"),
        ("create --list --gpu H100", "takes no --gpu"),
        ("create --down x --disk 100 --spot", "takes no --disk, --spot"),
        ("create --down ../x", "no machine '../x'"),
        ("create --model= --dry-run", "--model: a text is needed"),
        ("create --source= --dry-run", "--source: a text is needed"),
        ("create --cloud kubernetes --source a:b --disk 50 --dry-run", "its node's disk"),
        ("service print --name ../x", "can't be a service's name"),
        ("service print --container=", "no image's name"),
        ("service print --container A!image", "no image's name"),
    ],
)
def test_what_makes_no_sense_is_said(
    words: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(words.split()) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""
    # SkyPilot is not installed only to say so.
    assert not (tmp_path / "data").exists()


def test_a_list_of_nothing_needs_no_skypilot(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["create", "--list"]) == 0
    assert capsys.readouterr().out == "No machine was made here.\n"
    assert not (tmp_path / "data").exists()


def test_a_machine_that_no_one_reaches_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "me@127.0.0.1:1", "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["verdict"], document["findings"][0]["check"]) == ("problem", "connection")
    assert "nothing listens on port 1" in document["findings"][0]["what"]
    assert "nothing listens on port 1" in err


def test_an_option_that_ssh_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "me@127.0.0.1:1", "--ssh-option", "NoSuchThing=1"]) == 1
    assert "does not take the --ssh-option" in capsys.readouterr().err
