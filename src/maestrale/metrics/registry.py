"""All metrics of one server, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric

from maestrale.engines.base import Engine
from maestrale.metrics.answers import AnswerMetrics, ModelMetrics
from maestrale.metrics.engine import EngineCollectors, NodeCollector
from maestrale.metrics.names import HTTP_SECONDS
from maestrale.metrics.usage import UsageMetrics
from maestrale.usage import UsageRow

# There from the start at 0, so that the first of each shows in a rate.
USUAL_REASONS = (
    *("queue_full", "queue_timeout", "rate_limit_exceeded", "invalid_api_key"),
    *("context_length_exceeded", "invalid_value", "model_not_found", "starting", "draining"),
)
USUAL_ROUTES = ("/v1/chat/completions", "/v1/completions")


class Metrics:
    """What the routes report to, and what /metrics renders.

    Metrics of HTTP and of the process are there from the start, the others from `watch` on.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._answers: AnswerMetrics | None = None
        self._engines: EngineCollectors | None = None
        self._rejected = Counter(
            "maestrale_rejected_requests",
            "Requests that got an error for an answer, by the error's code.",
            ("reason",),
            registry=self._registry,
        )
        for reason in USUAL_REASONS:
            self._rejected.labels(reason)
        self._http = Counter(
            "http_requests",
            "Requests by route, method and class of status.",
            ("handler", "method", "status"),
            registry=self._registry,
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "From a request's head to the end of its answer.",
            ("handler", "method"),
            registry=self._registry,
            buckets=HTTP_SECONDS,
        )
        for route in USUAL_ROUTES:
            self._http.labels(route, "POST", "2xx")
            self._http_seconds.labels(route, "POST")

    def watch(
        self, engine: Engine | None, model_name: str, queued: Callable[[], int]
    ) -> ModelMetrics:
        """Begin to report on this engine, under this model's name; for each model once.

        `queued` gives the sequences that wait before the engine. Without an engine, answers alone
        are reported on: another process has it. What is given back counts them.
        """
        labels = {"model_name": model_name, "engine": "0"}
        if engine is not None:
            if self._engines is None:
                self._engines = EngineCollectors()
                self._registry.register(self._engines)
            self._engines.add(engine, labels, queued)
        if self._answers is None:
            self._answers = AnswerMetrics(self._registry)
        return self._answers.of(labels)

    def watch_nodes(self, states: Callable[[], list[str]]) -> None:
        """Report on the API processes of other nodes, by their states; nothing while none is."""
        self._registry.register(NodeCollector(states))

    def watch_usage(self) -> Callable[[UsageRow], None]:
        """Report what each key uses; what is given back counts it."""
        return UsageMetrics(self._registry).add

    def everything(self) -> Iterable[Metric]:
        """All time series."""
        return self._registry.collect()

    def collect(self, *names: str) -> Iterable[Metric]:
        """These time series alone, by the names that `render` gives them."""
        return self._registry.restricted_registry(names).collect()

    def observe_rejected(self, reason: str) -> None:
        """Count a request that got an error for an answer; `reason` is the error's code."""
        self._rejected.labels(reason).inc()

    def observe_http(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count an HTTP request; `handler` is the path of its route."""
        self._http.labels(handler, method, f"{status // 100}xx").inc()
        self._http_seconds.labels(handler, method).observe(seconds)

    def render(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self._registry)
