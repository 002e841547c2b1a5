"""Nothing of what runs here speaks to anybody but the hosts that the user named, and no file is
left outside our folders: on an empty machine, in a network that notes every try."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quiet_network import Record, enclosed, maestrale, python
from serving import ROOT, clean_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("unshare") and shutil.which("ip")), reason="needs unshare and iproute2"
    ),
]
# The hub is on this machine, and the user named it.
PULL = """
import os, subprocess, sys
sys.path.insert(0, {tests!r})
from stand_in_hub import Repo, stand_in_hub
files = {{"config.json": b'{{}}', "tokenizer.json": b"{{}}", "model.safetensors": b"x" * 5000}}
with stand_in_hub(org__model=Repo(files)) as hub:
    done = subprocess.run(
        [sys.executable, "-m", "maestrale", "pull", "--engine", "vllm", "org/model"],
        env={{**os.environ, "HF_ENDPOINT": hub.url}},
    )
sys.exit(done.returncode)
"""
OURS = ("home/.cache/maestrale/", "home/.cache/huggingface/", "home/.local/state/maestrale/")


def run(folder: Path, *commands: list[str]) -> Record:
    record = enclosed(folder, list(commands), clean_environment())
    assert not any(record.codes), "\n".join(record.outputs)
    return record


def assert_quiet(record: Record) -> None:
    seen = {"names": record.names, "requests": record.proxied, "packets": record.packets}
    assert seen == {"names": [], "requests": [], "packets": []}, json.dumps(seen, indent=1)
    assert [path for path in record.left if not path.startswith(OURS)] == []


def test_a_model_is_pulled_from_the_hub_that_was_named_and_nobody_else(tmp_path: Path) -> None:
    pull = python(PULL.format(tests=str(ROOT / "tests")))
    record = run(tmp_path, pull, pull, maestrale("pull", "smollm2-135m-instruct"))
    assert_quiet(record)
    assert any(path.startswith("home/.cache/huggingface/") for path in record.left)


def test_what_only_looks_leaves_nothing(tmp_path: Path) -> None:
    record = run(
        tmp_path,
        maestrale("--help"),
        maestrale("version"),
        maestrale("plan", "mistralai/Mistral-7B-Instruct-v0.2", "--gpu", "A5000"),
        maestrale("keys", "list"),
        maestrale("serve", "--help"),
    )
    assert_quiet(record)
    assert record.left == []


@pytest.mark.parametrize(
    ("script", "seen"),
    [
        ("import socket; socket.getaddrinfo('www.example.org', 443)", "names"),
        ("import urllib.request as u; u.urlopen('http://example.org/')", "proxied"),
        ("import urllib.request as u; u.urlopen('https://example.org/')", "proxied"),
        ("import socket; socket.create_connection(('192.0.2.7', 443), 1)", "packets"),
        ("import socket as s; s.socket(2, 2).sendto(b'x', ('192.0.2.7', 9))", "packets"),
        ("import pathlib; (pathlib.Path.home() / 'intel').mkdir(); "
         "(pathlib.Path.home() / 'intel/id').touch()", "left"),
        ("import tempfile; tempfile.mkstemp()", "left"),
        ("open('here', 'w')", "left"),
    ],
)  # fmt: skip
def test_the_recorder_sees(tmp_path: Path, script: str, seen: str) -> None:
    record = enclosed(tmp_path, [python(script)], clean_environment())
    assert getattr(record, seen), record
    with pytest.raises(AssertionError):
        assert_quiet(record)
