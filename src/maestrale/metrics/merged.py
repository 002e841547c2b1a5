"""The metrics of several API processes as those of one server.

Counters and histograms are added up, and what a process that is gone had counted stays. Of the
gauges, each process's own (memory, open files) are added up; the engine's come from the parent
alone, which has the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct
from prometheus_client import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from maestrale.metrics.registry import Metrics

# Of these the sum would tell nothing: since when, and how many at most.
EARLIEST = ("process_start_time_seconds",)
LARGEST = ("process_max_fds",)

Labels = tuple[tuple[str, str], ...]


class MetricFamily(Struct, array_like=True, frozen=True):
    """One metric of one process. A sample is (name, sorted labels, value)."""

    name: str
    documentation: str
    type: str
    samples: list[tuple[str, Labels, float]]


def families(metrics: Iterable[Metric]) -> list[MetricFamily]:
    return [
        MetricFamily(
            metric.name,
            metric.documentation,
            metric.type,
            [
                (sample.name, tuple(sorted(sample.labels.items())), float(sample.value))
                for sample in metric.samples
            ],
        )
        for metric in metrics
    ]


def merge(sources: Iterable[Iterable[MetricFamily]]) -> list[MetricFamily]:
    """The same metrics of several processes as one: in the order in which they first appear."""
    first: dict[str, MetricFamily] = {}
    values: dict[str, dict[tuple[str, Labels], float]] = {}
    for source in sources:
        for family in source:
            first.setdefault(family.name, family)
            into = values.setdefault(family.name, {})
            for name, labels, value in family.samples:
                known = into.get((name, labels))
                into[name, labels] = value if known is None else _both(name, known, value)
    return [
        MetricFamily(
            name,
            family.documentation,
            family.type,
            [(sample, labels, value) for (sample, labels), value in values[name].items()],
        )
        for name, family in first.items()
    ]


def lasting(source: Iterable[MetricFamily]) -> list[MetricFamily]:
    """What stays of a process that is gone: all but its gauges."""
    return [family for family in source if family.type != "gauge"]


def _both(name: str, one: float, other: float) -> float:
    if name.endswith("_created") or name in EARLIEST:
        return min(one, other)
    return max(one, other) if name in LARGEST else one + other


class MergedMetrics(Metrics):
    """The parent's own metrics, the engine's among them, together with those of its workers.

    `workers` gives what each living one reported last; `leave` takes in one that is gone.
    """

    def __init__(self, workers: Callable[[], Iterable[list[MetricFamily]]]) -> None:
        super().__init__()
        self._workers = workers
        self._gone: list[MetricFamily] = []
        self.restarts = 0
        self._registry.register(_Workers(self))

    def leave(self, last: list[MetricFamily]) -> None:
        """A worker ended: what it counted stays."""
        self._gone = merge([self._gone, lasting(last)])

    def count(self) -> int:
        return len(list(self._workers()))

    def collect(self, *names: str) -> Iterable[Metric]:
        for metric in self._collect():
            samples = [sample for sample in metric.samples if sample.name in names]
            if samples:
                metric.samples = samples
                yield metric

    def render(self) -> bytes:
        return generate_latest(_Merged(self._collect))

    def _collect(self) -> Iterable[Metric]:
        own = families(self._registry.collect())
        for family in merge([own, self._gone, *self._workers()]):
            metric = Metric(family.name, family.documentation, family.type)
            for name, labels, value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric


class _Merged:
    """What `generate_latest` wants of a registry."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect


class _Workers(Collector):
    def __init__(self, metrics: MergedMetrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        count = GaugeMetricFamily("maestrale_api_workers", "API processes that there are.")
        count.add_metric([], self._metrics.count())
        restarts = CounterMetricFamily(
            "maestrale_api_worker_restarts", "API processes that died and were replaced."
        )
        restarts.add_metric([], self._metrics.restarts)
        yield count
        yield restarts
