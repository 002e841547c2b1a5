"""Several processes' metrics as one server's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from maestrale.metrics.merged import MergedMetrics, MetricFamily, families


def reported(count: int, seconds: float, memory: float) -> list[MetricFamily]:
    """What a worker that answered so many requests says."""
    registry = CollectorRegistry()
    answers = Counter("answers", "Answers.", ("reason",), registry=registry)
    answers.labels("stop").inc(count)
    Histogram("seconds", "Time.", registry=registry, buckets=(1, 2)).observe(seconds)
    Gauge("process_resident_memory_bytes", "Memory.", registry=registry).set(memory)
    Gauge("process_start_time_seconds", "Start.", registry=registry).set(memory)
    return families(registry.collect())


def values(text: bytes) -> dict[str, float]:
    return {
        sample.name + "".join(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_counters_and_histograms_are_added_up() -> None:
    merged = MergedMetrics(lambda: [reported(3, 0.5, 1.0), reported(4, 1.5, 2.0)])
    found = values(merged.render())
    assert found["answers_totalstop"] == 7
    assert found["seconds_bucket1.0"] == 1
    assert found["seconds_bucket2.0"] == 2
    assert found["seconds_count"] == 2
    assert found["seconds_sum"] == 2.0
    assert found["process_start_time_seconds"] == 1.0
    assert found["process_resident_memory_bytes"] > 3.0  # the parent's own is in it
    assert found["maestrale_api_workers"] == 2


def test_what_a_worker_counted_stays_when_it_is_gone() -> None:
    living = [reported(3, 0.5, 1e15), reported(4, 1.5, 1e15)]
    merged = MergedMetrics(lambda: living)
    merged.leave(living.pop())
    found = values(merged.render())
    assert found["answers_totalstop"] == 7
    assert found["seconds_count"] == 2
    assert found["process_resident_memory_bytes"] < 2e15
    assert found["maestrale_api_workers"] == 1


def test_some_series_alone() -> None:
    merged = MergedMetrics(lambda: [reported(3, 0.5, 1.0), reported(4, 1.5, 2.0)])
    (family,) = merged.collect("answers_total")
    assert [sample.value for sample in family.samples] == [7]
