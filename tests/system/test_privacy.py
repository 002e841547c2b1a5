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
# Serves as a user would start it for the first time, is asked, and is ended.
FIRST_START = """
import json, signal, subprocess, sys, time, urllib.error, urllib.request
log = open("/mnt/serve.log", "w")
server = subprocess.Popen([sys.executable, "-m", "maestrale", "serve"], stdout=log, stderr=log)

def ask(path, body=None, expected=200):
    data = json.dumps(body).encode() if body else None
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request("http://127.0.0.1:8000" + path, data, head)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            code, body = answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        code, body = error.code, json.load(error)
    assert code == expected, body
    return body

def chat(expected=200, **fields):
    messages = [{"role": "user", "content": "See http://names.example/ and tell."}]
    body = {"model": model, "max_tokens": 8, "messages": messages, **fields}
    return ask("/v1/chat/completions", body, expected)

def json_as(schema):
    named = {"name": "x", "schema": {"type": "object", **schema}}
    return {"response_format": {"type": "json_schema", "json_schema": named}}

try:
    ends = time.monotonic() + 600
    while True:
        try:
            model = ask("/v1/models")["data"][0]["id"]
            break
        except (OSError, AssertionError):
            assert server.poll() is None and time.monotonic() < ends, "it does not start"
            time.sleep(0.2)
    assert chat()["choices"][0]["message"]["content"]
    chat(**json_as({"$schema": "https://json-schema.org/draft/2020-12/schema",
                    "properties": {"a": {"type": "boolean"}}}))
    chat(400, **json_as({"properties": {"a": {"$ref": "https://refs.example/a.json"}}}))
    image = {"type": "image_url", "image_url": {"url": "http://images.example/x.png"}}
    chat(400, messages=[{"role": "user", "content": [image]}])
    for client in (["verify", "--folder", "Is it up", "--folder", "Streaming"],
                   ["bench", "--requests", "2", "--concurrency", "1", "--warm-up", "1"],
                   ["chat", "-m", "Hello", "--max-tokens", "4"]):
        done = subprocess.run([sys.executable, "-m", "maestrale", *client], capture_output=True)
        assert done.returncode in (0, 1), done.stderr
        assert b"fault in maestrale" not in done.stderr, done.stderr
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
finally:
    server.kill()
"""
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
OURS = tuple(
    f"home/{each}/"
    for each in (
        ".cache/maestrale",
        ".cache/huggingface",
        ".config/maestrale",
        ".local/state/maestrale",
    )
)


def run(folder: Path, *commands: list[str]) -> Record:
    record = enclosed(folder, list(commands), clean_environment())
    assert not any(record.codes), "\n".join(record.outputs)
    return record


def assert_quiet(record: Record) -> None:
    seen = {"names": record.names, "requests": record.proxied, "packets": record.packets}
    assert seen == {"names": [], "requests": [], "packets": []}, json.dumps(seen, indent=1)
    assert [path for path in record.left if not path.startswith(OURS)] == []


@pytest.mark.timeout(900)
def test_the_first_start_and_our_clients_speak_to_nobody(tmp_path: Path) -> None:
    record = run(tmp_path, python(FIRST_START))
    assert_quiet(record)
    assert any(path.startswith("home/.cache/maestrale/") for path in record.left)


def test_a_model_is_pulled_from_the_hub_that_was_named_and_nobody_else(tmp_path: Path) -> None:
    pull = python(PULL.format(tests=str(ROOT / "tests" / "support")))
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
