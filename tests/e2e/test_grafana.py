"""The real Prometheus scrapes the real server, and every panel's query finds something."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import vllm_queries
from prometheus import Prometheus, filled_in, installed, prometheus
from serving import ROOT, Server

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not installed(), reason="Prometheus is not installed"),
]

DEPLOY = ROOT / "deploy/grafana"
DASHBOARD = json.loads((DEPLOY / "dashboards/maestrale.json").read_text())
WINDOW = "1m"


def load(server: Server) -> None:
    """A short load: a few answers at once, one cut off, one refused, one that left."""
    with httpx.Client(base_url=server.url, timeout=120) as client:

        def ask(number: int) -> None:
            body: dict[str, Any] = {
                "messages": [{"role": "user", "content": f"Name {number} animals. " * 12}],
                "max_tokens": 24,
            }
            assert client.post("/v1/chat/completions", json=body).status_code == 200

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, [1, 2, 3, 3]))
        assert client.post("/v1/chat/completions", json={"model": "none"}).status_code == 400
        with client.stream(
            "POST",
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "Count."}], "stream": True},
        ) as answer:
            next(answer.iter_lines())


@pytest.fixture(scope="module")
def scraped(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with the configuration that we ship, pointed at the server under test."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = (DEPLOY / "prometheus.yml").read_text()
    assert '"127.0.0.1:8000"' in config
    config = config.replace("127.0.0.1:8000", server.url.removeprefix("http://"))
    config = config.replace("scrape_interval: 5s", "scrape_interval: 1s")
    (folder / "prometheus.yml").write_text(config)
    (folder / "alerts.yml").write_text((DEPLOY / "alerts.yml").read_text())
    with prometheus(folder / "prometheus.yml", folder) as running:
        running.until("vllm:num_requests_running")
        before = _answers(running)
        load(server)
        running.until(f"(sum(vllm:e2e_request_latency_seconds_count) - {before}) >= 4")
        running.until('rate(http_request_duration_seconds_count{handler=~".*chat.*"}[1m])')
        running.until('rate(vllm:request_success_total{finished_reason="abort"}[1m]) > 0')
        yield running


def _answers(running: Prometheus) -> float:
    found = running.query("sum(vllm:e2e_request_latency_seconds_count)")
    return float(found[0]["value"][1])


def panels() -> list[tuple[str, str]]:
    return [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


def ask(running: Prometheus, expression: str) -> list[float]:
    """The values of a panel's query, those that are no numbers left out."""
    model = running.label_values("model_name", "vllm:num_requests_running")[0]
    sent = filled_in(
        expression, WINDOW, job="maestrale", model_name=re.escape(model).replace("\\", ""),
        instance=".*", engine=".*",
    )  # fmt: skip
    values = [float(series["value"][1]) for series in running.query(sent)]
    return [value for value in values if not math.isnan(value)]


@pytest.mark.parametrize(("title", "expression"), panels(), ids=[title for title, _ in panels()])
def test_our_panels_have_data(scraped: Prometheus, title: str, expression: str) -> None:
    assert ask(scraped, expression), expression


def test_vllms_queries_have_data(scraped: Prometheus) -> None:
    empty = [query for query in vllm_queries.queries() if not ask(scraped, query)]
    assert not empty, "\n".join(empty)


def test_variables_offer_something(scraped: Prometheus) -> None:
    for label in ("job", "model_name", "instance", "engine"):
        assert scraped.label_values(label, "vllm:num_requests_running")


def test_the_numbers_are_the_requests(scraped: Prometheus) -> None:
    """The phases add up to nearly the whole, and steps hold at least the tokens that were given."""
    sums = {
        name: scraped.query(f"sum(vllm:{name}_sum)")[0]["value"][1]
        for name in ("e2e_request_latency_seconds", "request_queue_time_seconds",
                     "request_prefill_time_seconds", "request_decode_time_seconds",
                     "request_inference_time_seconds", "iteration_tokens_total")
    }  # fmt: skip
    value = {name: float(text) for name, text in sums.items()}
    phases = (
        value["request_queue_time_seconds"]
        + value["request_prefill_time_seconds"]
        + value["request_decode_time_seconds"]
    )
    assert phases <= value["e2e_request_latency_seconds"]  # the rest is making the prompts
    assert phases == pytest.approx(value["e2e_request_latency_seconds"], rel=0.2)
    generated = float(scraped.query("sum(vllm:generation_tokens_total)")[0]["value"][1])
    assert value["iteration_tokens_total"] > generated > 0


def test_every_panel_names_what_we_export(scraped: Prometheus) -> None:
    known = set(scraped.label_values("__name__", '{job="maestrale"}'))
    for _, expression in panels():
        for name in re.findall(r"\b(?:vllm:|maestrale_|http_|process_)\w+", expression):
            assert name in known, name


@pytest.mark.parametrize("name", ["prometheus.yml", "alerts.yml"])
def test_promtool_accepts(name: str) -> None:
    kind = "rules" if name == "alerts.yml" else "config"
    found = subprocess.run(
        ["promtool", "check", kind, str(DEPLOY / name)], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_provisioning_names_the_dashboard() -> None:
    folder = DEPLOY / "provisioning"
    assert "uid: prometheus" in (folder / "datasources/prometheus.yml").read_text()
    assert "type: file" in (folder / "dashboards/maestrale.yml").read_text()
    assert DASHBOARD["uid"] == "maestrale"
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    assert Path(DEPLOY / "README.md").is_file()
