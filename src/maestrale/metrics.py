"""Prometheus metrics under vLLM's names, so that its dashboards work here.

What vLLM has no name for begins with `maestrale_`.

Counters and histograms count what the API answered; gauges and the prefix cache's counters
are the engine's own, read when scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from maestrale.chat import Answer
from maestrale.engines.base import Engine

LABELS = ("model_name", "engine")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
GAP_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.4, 0.8, 2.0, 10.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._labels: dict[str, str] = {}
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens answered.")
        self._generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self._success = Counter(
            "vllm:request_success",
            "Choices that ended, by finish reason.",
            (*LABELS, "finished_reason"),
            registry=self._registry,
        )
        self._rejected = Counter(
            "maestrale_rejected_requests",
            "Requests that got an error for an answer, by the error's code.",
            ("reason",),
            registry=self._registry,
        )
        self._ttft = self._histogram(
            "vllm:time_to_first_token_seconds", "From request to first token.", SECONDS
        )
        self._gap = self._histogram(
            "vllm:inter_token_latency_seconds", "Between deltas of one choice.", GAP_SECONDS
        )
        self._per_token = self._histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean time of a token after the first, by request.",
            GAP_SECONDS,
        )
        self._e2e = self._histogram(
            "vllm:e2e_request_latency_seconds", "From request to its last token.", SECONDS
        )
        self._decode = self._histogram(
            "vllm:request_decode_time_seconds", "From first token to last.", SECONDS
        )
        self._request_prompt = self._histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKENS
        )
        self._request_generation = self._histogram(
            "vllm:request_generation_tokens", "Generated tokens of a request.", TOKENS
        )
        self._gap_child: Histogram | None = None

    def watch(self, engine: Engine, model_name: str, queued: Callable[[], int]) -> None:
        """Begin to report on this engine, under this model's name.

        `queued` gives the sequences that wait before the engine.
        """
        self._labels = {"model_name": model_name, "engine": "0"}
        self._gap_child = self._gap.labels(**self._labels)
        self._registry.register(_EngineCollector(engine, self._labels, queued))

    def observe_rejected(self, reason: str) -> None:
        """Count a request that got an error for an answer; `reason` is the error's code."""
        self._rejected.labels(reason).inc()

    def observe_gap(self, seconds: float) -> None:
        """Time between two deltas of one choice."""
        if self._gap_child is not None:
            self._gap_child.observe(seconds)

    def observe(self, answer: Answer) -> None:
        """Count an answer that ended, well or not."""
        usage, timings = answer.usage, answer.timings
        labels = self._labels
        self._prompt_tokens.labels(**labels).inc(usage.prompt_tokens)
        self._generation_tokens.labels(**labels).inc(usage.completion_tokens)
        for reason in answer.finish_reasons.values():
            self._success.labels(**labels, finished_reason=reason).inc()
        first, last = timings.first_token, timings.finished
        if first is not None:
            self._ttft.labels(**labels).observe(first - timings.started)
        if last is None:
            return
        self._e2e.labels(**labels).observe(last - timings.started)
        self._request_prompt.labels(**labels).observe(usage.prompt_tokens)
        self._request_generation.labels(**labels).observe(usage.completion_tokens)
        if first is not None:
            self._decode.labels(**labels).observe(last - first)
            per_choice = usage.completion_tokens / len(answer.requests)
            if per_choice > 1:
                self._per_token.labels(**labels).observe((last - first) / (per_choice - 1))

    def render(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, LABELS, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, LABELS, registry=self._registry, buckets=buckets)


class _EngineCollector(Collector):
    """Reads the engine's own numbers when scraped."""

    def __init__(self, engine: Engine, labels: dict[str, str], queued: Callable[[], int]) -> None:
        self._engine = engine
        self._queued = queued
        self._values = list(labels.values())

    def collect(self) -> Iterable[Metric]:
        stats = self._engine.stats()
        for name, text, value in (
            ("vllm:num_requests_running", "Sequences being decoded.", stats.running),
            ("vllm:num_requests_waiting", "Sequences waiting for a place.",
             stats.waiting + self._queued()),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.",
             stats.kv_cache_usage),
        ):  # fmt: skip
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            gauge.add_metric(self._values, value)
            yield gauge
        for name, text, value in (
            ("vllm:num_preemptions", "Sequences put back to wait.", stats.preemptions),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits),
            ("maestrale_engine_restarts", "Engine processes replaced.", stats.restarts),
            ("maestrale_replayed_requests", "Sequences whose engine died, and that went to its "
             "successor.", stats.replayed),
        ):  # fmt: skip
            counter = CounterMetricFamily(name, text, labels=LABELS)
            counter.add_metric(self._values, value)
            yield counter
