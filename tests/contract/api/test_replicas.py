"""An engine that stands for several: /status.json and /metrics tell of each."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families

import api_app
from api_app import api
from maestrale.engines.base import EngineStats, ReplicaStatus
from maestrale.engines.scripted import ScriptedEngine

pytestmark = pytest.mark.anyio


def replica(name: str, state: str, host: str, running: int, tokens: int) -> ReplicaStatus:
    return ReplicaStatus(
        name=name, state=state, node="ab12", host=host, pid=10, engine_pid=11, fingerprint="f",
        in_flight=running, stats=EngineStats(running=running, waiting=1, generation_tokens=tokens),
    )  # fmt: skip


class Several(ScriptedEngine):
    """Says that it stands for two."""

    def replicas(self) -> Sequence[ReplicaStatus]:
        return [replica("b", "draining", "node-2", 1, 70), replica("a", "up", "node-1", 3, 500)]


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


async def test_one_engine_has_none() -> None:
    async with api() as server:
        assert (await server.client.get("/status.json")).json()["replicas"] == []
        assert "maestrale_replica" not in (await server.client.get("/metrics")).text
