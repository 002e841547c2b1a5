"""Traces of requests, as an OTLP collector gets them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from api_app import MODEL, api, make_settings
from otlp import Collector, collector
from serving import clean_environment

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
pytestmark = pytest.mark.anyio

SERVER = 2  # the kind of a span


@pytest.fixture(autouse=True)
def quick_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
def found() -> Iterator[Collector]:
    with collector() as running:
        yield running


async def test_a_chat_is_a_span_with_its_phases(found: Collector) -> None:
    before = time.time()
    async with api(make_settings(otlp_traces_endpoint=found.url)) as server:
        answer = await server.client.post(
            "/v1/chat/completions",
            json={
                "model": MODEL,
                "messages": [{"role": "user", "content": "a secret"}],
                "max_tokens": 5,
                "temperature": 0.5,
                "seed": 7,
            },
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"},
        )
        assert answer.status_code == 200
        span = found.until(lambda span: span["kind"] == SERVER)
        phases = {
            name: found.until(lambda span, name=name: span["name"] == name)  # type: ignore[misc]
            for name in ("prepare", "queue", "prefill", "decode")
        }
    assert found.paths == {"/v1/traces"}
    assert found.resource["service.name"] == "maestrale"
    assert span["name"] == f"chat {MODEL}"
    assert (span["trace_id"], span["parent"]) == (TRACE, PARENT)
    assert not span["failed"]
    usage = answer.json()["usage"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "maestrale",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.id": answer.json()["id"],
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.output.type": "text",
        "http.response.status_code": 200,
        "http.route": "/v1/chat/completions",
        "maestrale.request.id": "mine",
    }
    assert expected.items() <= span["attributes"].items()
    assert "secret" not in str(found.spans)
    assert before - 1 < span["begin"] <= span["end"] < time.time() + 1
    times = [phases[name][edge] for name in phases for edge in ("begin", "end")]
    assert times == pytest.approx(sorted(times), abs=1e-4)
    assert span["begin"] - 1e-3 <= times[0]
    assert times[-1] <= span["end"] + 1e-3
    assert {phase["parent"] for phase in phases.values()} == {span["id"]}


async def test_thoughts_are_told(found: Collector) -> None:
    said = {"text": "<think>Hm.</think>Yes."}
    async with api(
        make_settings(otlp_traces_endpoint=found.url), options=said, thinks=True
    ) as server:
        usage = (await server.chat()).json()["usage"]
        span = found.until(lambda span: span["kind"] == SERVER)
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert span["attributes"]["gen_ai.usage.reasoning.output_tokens"] == thought > 3


async def test_refusals_and_failures_are_told(found: Collector) -> None:
    settings = make_settings(otlp_traces_endpoint=found.url)
    async with api(settings, options={"lose_at_token": "2"}) as server:
        assert (await server.chat(temperature=-1)).status_code == 400
        assert (await server.chat()).status_code == 503
        refused = found.until(lambda s: s["attributes"].get("http.response.status_code") == 400)
        failed = found.until(lambda s: s["attributes"].get("http.response.status_code") == 503)
    assert refused["attributes"]["error.type"] == "invalid_value"
    assert refused["name"] == "POST /v1/chat/completions"
    assert len(refused["trace_id"]) == 32
    assert not refused["parent"]
    assert not refused["failed"]  # by the conventions, a client's fault is no error of a server
    assert failed["failed"]
    assert failed["attributes"]["gen_ai.response.finish_reasons"] == ["error"]


async def test_probes_are_not_traced(found: Collector) -> None:
    async with api(make_settings(otlp_traces_endpoint=found.url)) as server:
        for path in ("/health", "/metrics", "/v1/models"):
            assert (await server.client.get(path)).status_code == 200
        await server.chat(max_tokens=1)
        found.until(lambda span: span["kind"] == SERVER)
    assert [span["name"] for span in found.spans if span["kind"] == SERVER] == [f"chat {MODEL}"]


async def test_a_broken_traceparent_begins_a_trace_of_its_own(found: Collector) -> None:
    async with api(make_settings(otlp_traces_endpoint=found.url)) as server:
        for header in ("00-zz-zz-01", "x" * 500, f"00-{'0' * 32}-{PARENT}-01"):
            answer = await server.client.post(
                "/v1/chat/completions", json={"max_tokens": 1}, headers={"traceparent": header}
            )
            assert answer.status_code == 400
        span = found.until(lambda span: span["kind"] == SERVER)
    assert not span["parent"]


def test_without_the_extra_it_says_what_to_do() -> None:
    """A fresh interpreter that can't find OpenTelemetry."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from maestrale.cli.main import main\n"
        "main(['serve', '--engine', 'scripted', '--port', '0', "
        "'--otlp-traces-endpoint', 'http://127.0.0.1:9'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "scripts/extra otel" in done.stderr
    assert "Traceback" not in done.stderr


def test_who_asks_for_no_traces_pays_for_none() -> None:
    code = "import maestrale.api.app, sys; print('opentelemetry' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "False"
