"""An API process on a node: what it is told, why it does not start, when it is given up."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from maestrale import __version__
from maestrale.config.paths import default_cache_dir
from maestrale.config.settings import Settings
from maestrale.keys import KeyStore, add_key
from maestrale.serve.nodes import actor
from maestrale.serve.nodes.actor import ApiOnNode
from maestrale.serve.nodes.child import host_here, settings_here, url_here
from maestrale.serve.nodes.keeper import node_spec
from maestrale.serve.nodes.messages import ChildSpec, NodeState, Word, pack_keys
from serving import clean_environment

SECRET = "sk-nobody-must-see-this"


def settings(**more: object) -> Settings:
    given: dict[str, object] = {"ray_address": "127.0.0.1:6379", "api_nodes": "all"}
    given |= {"cache_dir": default_cache_dir(), **more}
    return Settings(**given)  # type: ignore[arg-type]


def child_spec(told: Settings, folder: Path, parent: int | None = None) -> ChildSpec:
    models = [dataclasses.replace(told, engine="scripted")]
    spec, parent = node_spec(told, models), parent or os.getpid()
    return ChildSpec(spec, parent, "10.0.0.1:6379", "10.0.0.2", str(folder / "keys.json"))


def run_child(spec: ChildSpec) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "maestrale.serve.nodes.child"],
        input=msgspec.msgpack.encode(spec),
        env=clean_environment(),
        capture_output=True,
        timeout=60,
    )


def test_no_key_and_no_token_leaves_the_first_server(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    told = settings(api_key=(SECRET,), ray_token_file=token, port=8123, max_waiting=7)
    assert SECRET.encode() not in msgspec.msgpack.encode(node_spec(told, [told]))
    spec = child_spec(told, tmp_path)
    [here] = [settings_here(spec, packed) for packed in spec.node.models]
    assert here.ray_join
    assert here.ray_token_file is None
    assert (here.api_nodes, here.ray_address) == ("this", "10.0.0.1:6379")
    assert (here.port, here.max_waiting, here.engine) == (8123, 7, "scripted")
    keys = KeyStore((SECRET,)).entries()
    assert SECRET.encode() not in pack_keys(keys)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("10.0.0.1", "10.0.0.2"),  # the first server's own: each listens on its node's
        ("api.example.org", "10.0.0.2"),
    ],
)
def test_no_node_listens_more_widely_than_the_first(host: str, here: str) -> None:
    assert host_here(host, "10.0.0.2") == here


@pytest.mark.parametrize(
    ("host", "node_ip", "url"),
    [
        ("0.0.0.0", "10.0.0.2", "http://10.0.0.2:8000"),
        ("::", "fd00::2", "http://[fd00::2]:8000"),
        ("127.0.0.1", "10.0.0.2", "http://127.0.0.1:8000"),
    ],
)
def test_the_url_is_that_which_others_reach(host: str, node_ip: str, url: str) -> None:
    assert url_here("http://127.0.0.1:8000", host, node_ip) == url


def test_a_file_that_the_node_lacks_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "cert.pem"
    spec = child_spec(settings(ssl_certfile=absent, ssl_keyfile=absent), tmp_path)
    ended = run_child(spec)
    assert ended.returncode == 1
    word = msgspec.json.decode(ended.stdout, type=Word)
    assert f"has no file {absent}" in word.failed
    assert "--ssl-certfile" in word.failed
    assert b"Traceback" not in ended.stderr


def test_a_child_whose_parent_is_gone_ends_at_once(tmp_path: Path) -> None:
    ended = run_child(child_spec(settings(), tmp_path, parent=1))
    assert (ended.returncode, ended.stdout) == (1, b"")


class Scripted(ApiOnNode):
    """Its API processes end as `script` says: whether they were ready."""

    def __init__(self, script: Callable[[int], bool], keys: bytes = pack_keys(None)) -> None:
        super().__init__(__version__, b"", keys)
        self.script, self.runs = script, 0

    async def _run_one(self) -> tuple[bool, str]:
        self.runs += 1
        return self.script(self.runs), f"Reason {self.runs}."


async def until(node: ApiOnNode, state: str) -> NodeState:
    seen = -1
    async with asyncio.timeout(10):
        while True:
            heard = msgspec.msgpack.decode(await node.state(seen), type=NodeState)
            if heard.state == state:
                return heard
            seen = heard.version


@pytest.mark.anyio
async def test_what_never_answers_is_given_up_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actor, "PAUSE", 0.0)
    node = Scripted(lambda run: False)
    failed = await until(node, "failed")
    assert node.runs == actor.ATTEMPTS
    assert failed.detail == f"Reason {actor.ATTEMPTS}."
    await node.stop(0)


@pytest.mark.anyio
async def test_one_that_answered_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "PAUSE", 0.0)
    node = Scripted(lambda run: run == 2)
    failed = await until(node, "failed")
    # One that failed, one that answered, and from there as many as are allowed.
    assert node.runs == 2 + actor.ATTEMPTS
    assert failed.restarts == node.runs - 1
    await node.stop(0)


@pytest.mark.anyio
async def test_another_version_is_told_and_not_tried() -> None:
    node = ApiOnNode("0.0.9", b"", pack_keys(None))
    failed = await until(node, "failed")
    assert "0.0.9" in failed.detail
    assert "same version" in failed.detail
    await node.stop(0)


@pytest.mark.anyio
async def test_keys_follow_and_only_digests_are_written(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    store = KeyStore((SECRET,), path)
    node = ApiOnNode("0.0.9", b"", pack_keys(store.entries()))
    copy = node._folder / "keys.json"
    assert SECRET not in copy.read_text()
    assert copy.stat().st_mode & 0o777 == 0o600
    assert node._folder.stat().st_mode & 0o777 == 0o700
    there = KeyStore((), copy)
    assert there.authenticate(SECRET.encode()) is not None
    named = add_key(path, "someone", requests_per_minute=3)
    await node.take_keys(pack_keys(KeyStore((SECRET,), path).entries()))
    found = KeyStore((), copy).authenticate(named.encode())
    assert found is not None
    assert (found.name, found.requests_per_minute) == ("someone", 3)
    await node.stop(0)
    assert not copy.exists()


@pytest.mark.anyio
async def test_without_keys_there_is_no_file() -> None:
    node = ApiOnNode("0.0.9", b"", pack_keys(KeyStore().entries()))
    assert list(node._folder.iterdir()) == []
    await node.stop(0)
