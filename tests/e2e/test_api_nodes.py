"""`serve --api-nodes all`: an API process on the second node, watched, and gone with the first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from maestrale.keys import add_key, revoke_key
from ray_cluster import THEIRS, RayCluster, wait_until
from serving import ROOT, Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KEY = "sk-of-the-first-server"
GRACE = "5"


@pytest.fixture(scope="module")
def second(ray_cluster: RayCluster) -> Iterator[None]:
    """The second node, with a network of its own."""
    if not ray_cluster.namespaces:
        pytest.skip("network namespaces need root")
    node = ray_cluster.second_node(cpus=1)
    yield
    node.kill()


class Cluster:
    """The first server, and a client in each of both networks."""

    def __init__(self, server: Server, cluster: RayCluster) -> None:
        self.server = server
        self._inside = ["ip", "netns", "exec", cluster.namespace]

    def first(self, path: str, body: dict[str, Any] | None = None, key: str = KEY) -> Any:
        headers = {"authorization": f"Bearer {key}"}
        method = "POST" if body else "GET"
        url = f"{self.server.url}{path}"
        return httpx.request(method, url, json=body, headers=headers, timeout=60)

    def node(self) -> dict[str, Any]:
        """What /status.json says of the second node; empty before it is known."""
        nodes = self.first("/status.json").json()["api_nodes"]
        assert len(nodes) <= 1
        return nodes[0] if nodes else {}

    def ready(self) -> dict[str, Any]:
        def settled() -> bool:
            state = self.node().get("state")
            assert state != "failed", self.node()
            return state == "ready"

        wait_until(settled)
        return self.node()

    def at_work(self) -> bool:
        """Whether any replica has a request, whoever's."""
        return any(each["running"] for each in self.first("/status.json").json()["replicas"])

    def second(self, url: str, body: dict[str, Any], key: str = KEY) -> tuple[int, Any]:
        """Asked from the second node's own network."""
        code = (
            "import sys, httpx, json; url, key, body = sys.argv[1:]; "
            "a = httpx.post(url, content=body, headers={'authorization': 'Bearer ' + key, "
            "'content-type': 'application/json'}, timeout=60); print(a.status_code, a.text)"
        )
        text = msgspec.json.encode(body).decode()
        asked = [sys.executable, "-c", code, f"{url}/v1/chat/completions", key, text]
        answer = subprocess.run(
            [*self._inside, *asked], capture_output=True, check=True, timeout=90
        )
        status, _, rest = answer.stdout.partition(b" ")
        return int(status), msgspec.json.decode(rest)


def question(seed: int) -> dict[str, Any]:
    said = [{"role": "user", "content": "Hello"}]
    return {"messages": said, "max_tokens": 40, "seed": seed, "temperature": 1.0}


def flags(cluster: RayCluster, *more: str) -> list[str]:
    return [
        *("--engine", "scripted", "--ray-address", cluster.address, "--api-nodes", "all"),
        *("--grace", GRACE, *more),
    ]


def test_every_node_answers_the_same_and_is_watched(
    ray_cluster: RayCluster, second: None, cache_dir: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    named = add_key(keys, "someone")
    asked = flags(ray_cluster, "--host", "0.0.0.0", "--key-file", str(keys))
    environment = {"MAESTRALE_API_KEY": KEY}
    with serving(*asked, cache_dir=cache_dir, environment=environment) as server:
        cluster = Cluster(server, ray_cluster)
        there = cluster.ready()
        assert there["address"] == THEIRS
        assert there["url"].startswith(f"http://{THEIRS}:")
        # Both nodes' APIs give the same answer, and ask for the same keys.
        here = cluster.first("/v1/chat/completions", question(5)).json()
        status, other = cluster.second(there["url"], question(5))
        assert status == 200
        assert other["choices"] == here["choices"]
        assert other["system_fingerprint"] == here["system_fingerprint"]
        assert cluster.second(there["url"], question(5), "sk-wrong")[0] == 401
        assert cluster.second(there["url"], question(5), named)[0] == 200
        command = Path(f"/proc/{there['pid']}/cmdline").read_bytes()
        environ = Path(f"/proc/{there['pid']}/environ").read_bytes()
        assert KEY.encode() not in command + environ
        # A key that is revoked in the first server's file is revoked everywhere.
        revoke_key(keys, "someone")
        wait_until(lambda: cluster.second(there["url"], question(5), named)[0] == 401, 15)
        # Killed, it comes back.
        os.kill(there["pid"], signal.SIGKILL)
        wait_until(lambda: cluster.node()["pid"] not in (there["pid"], 0))
        again = cluster.ready()
        assert again["restarts"] == 1
        assert not Path(f"/proc/{there['pid']}").exists()
        assert cluster.second(again["url"], question(5))[1]["choices"] == here["choices"]
        assert "maestrale_api_nodes" in cluster.first("/metrics").text
        # The first server's death is its end.
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not Path(f"/proc/{again['pid']}").exists(), 20)


def test_what_a_node_answers_ends_before_the_replicas_go(
    ray_cluster: RayCluster, second: None, cache_dir: Path
) -> None:
    script = {"text": "All the winds of the sea. ", "tokens_per_second": "30"}
    environment = {
        "PYTHONPATH": f"{ROOT}/src:{ROOT}/tests/support",
        "SCRIPT": json.dumps(script),
    }
    asked = flags(ray_cluster, "--host", "0.0.0.0", "--no-auth")
    with serving(
        *asked, cache_dir=cache_dir, environment=environment, module="scripted_server"
    ) as server:
        cluster = Cluster(server, ray_cluster)
        there = cluster.ready()
        answers: list[tuple[int, Any]] = []
        body = question(1) | {"max_tokens": 60, "ignore_eos": True}
        asking = threading.Thread(target=lambda: answers.append(cluster.second(there["url"], body)))
        asking.start()
        wait_until(cluster.at_work)
        server.process.terminate()
        server.process.wait(60)
        asking.join()
        assert not Path(f"/proc/{there['pid']}").exists()
    ((status, answer),) = answers
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 60
