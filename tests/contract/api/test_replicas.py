"""An engine that stands for several: /status.json, /metrics and doctor tell of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import api_app
from api_app import api, api_in_thread, make_settings
from hostile_keys import KEY
from maestrale.api.backend import Backend
from maestrale.api.operations.node_status import ApiNodeStatus
from maestrale.cli.doctor_server import server_findings
from maestrale.engines.base import EngineStats, ReplicaStatus
from maestrale.engines.scripted import ScriptedEngine
from serving import free_port


def replica(name: str, state: str, host: str, running: int, tokens: int) -> ReplicaStatus:
    return ReplicaStatus(
        name=name, state=state, node="ab12", host=host, pid=10, engine_pid=11, fingerprint="f",
        in_flight=running, stats=EngineStats(running=running, waiting=1, generation_tokens=tokens),
    )  # fmt: skip


class Several(ScriptedEngine):
    """Says that it stands for two."""

    def replicas(self) -> Sequence[ReplicaStatus]:
        return [replica("b", "draining", "node-2", 1, 70), replica("a", "up", "node-1", 3, 500)]


@pytest.mark.anyio
async def test_each_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_app, "ScriptedEngine", Several)
    async with api() as server:
        status = (await server.client.get("/status.json")).json()
        text = (await server.client.get("/metrics")).text
    assert [each["name"] for each in status["replicas"]] == ["a", "b"]
    first = status["replicas"][0]
    assert (first["state"], first["host"], first["running"]) == ("up", "node-1", 3)
    assert first["generation_tokens"] == 500
    found = {
        (sample.name, sample.labels.get("replica") or sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("maestrale_replica")
    }
    assert found["maestrale_replicas", "up"] == found["maestrale_replicas", "draining"] == 1
    assert found["maestrale_replicas", "lost"] == 0
    assert found["maestrale_replica_requests_running", "a"] == 3
    assert found["maestrale_replica_generation_tokens_total", "b"] == 70


@pytest.mark.anyio
async def test_one_engine_has_none() -> None:
    async with api() as server:
        assert (await server.client.get("/status.json")).json()["replicas"] == []
        assert "maestrale_replica" not in (await server.client.get("/metrics")).text


def test_no_server_is_no_finding() -> None:
    assert server_findings(make_settings(port=free_port()), True) == []


def test_the_server_and_each_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_app, "ScriptedEngine", Several)
    with api_in_thread() as url:
        settings = make_settings(port=urlsplit(url).port)
        server, first, second = server_findings(settings, True)
        assert server_findings(settings, False) == []
    assert server.state == first.state == second.state == "ok"
    assert "ready" in server.what
    assert first.what.startswith("a on node-1: up, 3 running")
    assert second.what.startswith("b on node-2: draining, 1 running")


def node(address: str, state: str, **more: Any) -> ApiNodeStatus:
    given = {"host": "", "detail": "", "url": "", "pid": 0, "restarts": 0, **more}
    return ApiNodeStatus(node="cd34", address=address, state=state, **given)


def test_the_api_processes_of_other_nodes_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        node("10.0.0.2", "ready", host="two", url="http://10.0.0.2:8000", pid=7, restarts=1),
        node("10.0.0.3", "failed", detail="It has no file cert.pem."),
    ]

    plain = Backend.__init__

    def with_nodes(self: Backend, *args: Any, **named: Any) -> None:
        plain(self, *args, **named)
        self.node_status = lambda: nodes

    monkeypatch.setattr(Backend, "__init__", with_nodes)
    with api_in_thread() as url:
        status = httpx.get(f"{url}/status.json").json()
        text = httpx.get(f"{url}/metrics").text
        _, ready, failed = server_findings(make_settings(port=urlsplit(url).port), True)
    assert [each["state"] for each in status["api_nodes"]] == ["ready", "failed"]
    assert status["api_nodes"][0]["url"] == "http://10.0.0.2:8000"
    assert 'maestrale_api_nodes{state="ready"} 1.0' in text
    assert 'maestrale_api_nodes{state="restarting"} 0.0' in text
    assert (ready.state, failed.state) == ("ok", "problem")
    assert "10.0.0.2 (two): ready, answers at http://10.0.0.2:8000" in ready.what
    assert "It has no file cert.pem." in failed.what


@pytest.mark.anyio
async def test_without_other_nodes_nothing_is_said_of_them() -> None:
    async with api() as server:
        assert (await server.client.get("/status.json")).json()["api_nodes"] == []
        assert "maestrale_api_nodes" not in (await server.client.get("/metrics")).text


def test_a_server_with_a_key_is_asked_with_ours() -> None:
    keyed = make_settings(api_key=(KEY,), host="0.0.0.0")
    with api_in_thread(settings=keyed) as url:
        port = urlsplit(url).port
        (refused,) = server_findings(make_settings(port=port), True)
        (told,) = server_findings(make_settings(port=port, api_key=(KEY,)), True)
    assert "MAESTRALE_API_KEY" in refused.what
    assert "ready" in told.what
