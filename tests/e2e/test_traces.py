"""Traces of the real server: by OpenTelemetry's own variables, and none lost when it stops."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from otlp import collector
from serving import serving

pytestmark = pytest.mark.model

TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_traced_chat_and_its_log_line(cache_dir: Path, prepared_model: Path) -> None:
    with collector() as found:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": found.url,
            "OTEL_SERVICE_NAME": "my-chat",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # so only the end sends them
        }
        with serving("--log-format", "json", cache_dir=cache_dir, environment=environment) as one:
            answer = httpx.post(
                f"{one.url}/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 4},
                headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
                timeout=60,
            )
            body = answer.raise_for_status().json()
            assert not found.spans
            waits = time.monotonic() + 10  # the line is written after the answer is sent
            while '"POST /v1/chat/completions"' not in one.log() and time.monotonic() < waits:
                time.sleep(0.05)
            log = one.log()
        names = {span["name"] for span in found.spans}
        assert names == {f"chat {body['model']}", "prepare", "queue", "prefill", "decode"}
        span = next(span for span in found.spans if span["name"].startswith("chat"))
    assert found.resource["service.name"] == "my-chat"
    assert span["trace_id"] == TRACE
    assert span["attributes"]["gen_ai.response.id"] == body["id"]
    assert span["attributes"]["gen_ai.usage.output_tokens"] == body["usage"]["completion_tokens"]
    entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (line,) = (entry for entry in entries if entry["message"] == "POST /v1/chat/completions")
    assert line["trace"] == TRACE
    assert line["id"] == answer.headers["x-request-id"]
    assert line["completion_tokens"] == body["usage"]["completion_tokens"]
    assert line["finish"] == body["choices"][0]["finish_reason"]
    assert "Say yes" not in log
