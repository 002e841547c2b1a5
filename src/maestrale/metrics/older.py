"""Names that vLLM has given up, for dashboards of its earlier versions. Made when scraped."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

GAUGES = {"vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc"}
COUNTERS = {
    "vllm:prefix_cache_queries": "vllm:gpu_prefix_cache_queries",
    "vllm:prefix_cache_hits": "vllm:gpu_prefix_cache_hits",
}
NAMES = GAUGES | COUNTERS
# There is no swapping to another memory, here or in today's vLLM.
ALWAYS_ZERO = ("vllm:num_requests_swapped", "vllm:cpu_cache_usage_perc")


def renamed(metric: Metric, name: str) -> Metric:
    """The same metric under another name."""
    other = Metric(name, f"Older name of {metric.name}.", metric.type)
    other.samples = [
        sample._replace(name=name + sample.name.removeprefix(metric.name))
        for sample in metric.samples
    ]
    return other


class OlderHistogram(Collector):
    """A histogram that also goes by an older name."""

    def __init__(self, histogram: Histogram, name: str) -> None:
        self._histogram = histogram
        self._name = name

    def collect(self) -> Iterable[Metric]:
        return [renamed(metric, self._name) for metric in self._histogram.collect()]
