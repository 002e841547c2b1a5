"""The API processes of one server on other nodes of a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

STATES = ("starting", "ready", "restarting", "failed")


class NodeCollector(Collector):
    """How many there are, by state, read when scraped."""

    def __init__(self, states: Callable[[], list[str]]) -> None:
        self._states = states

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        found = Counter(self._states())
        if not found:
            return
        gauge = GaugeMetricFamily(
            "maestrale_api_nodes",
            "API processes on other nodes of the cluster, by state.",
            labels=("state",),
        )
        for state in STATES:
            gauge.add_metric([state], found[state])
        yield gauge
