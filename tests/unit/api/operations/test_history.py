"""Samples and percentiles of the status page, from histograms whose content is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from maestrale.api.operations import history
from maestrale.api.operations.history import (
    Event,
    FaultLog,
    History,
    HistoryPoint,
    Sample,
    difference,
    percentile,
)
from maestrale.engines.base import EngineStats

BOUNDS = (0.1, 0.5, 1.0, 5.0)


def buckets(*values: float) -> history.Buckets:
    """As a real histogram counts these values."""
    registry = CollectorRegistry()
    histogram = Histogram("x", "x", ("model_name",), registry=registry, buckets=BOUNDS)
    histogram.labels("another").observe(2.0)
    histogram.labels("ours")
    for value in values:
        histogram.labels("ours").observe(value)
    [family] = registry.collect()
    found: dict[float, float] = {}
    history._add_buckets(found, family, "ours")
    return tuple(sorted(found.items()))


def test_nothing_observed_has_no_percentile() -> None:
    assert percentile((), 0.5) is None
    assert percentile(buckets(), 0.5) is None


def test_a_percentile_lies_in_its_bucket() -> None:
    spread = buckets(0.05, 0.2, 0.3, 0.7)
    assert percentile(spread, 0.5) == pytest.approx(0.3)  # half of the bucket of 0.1 to 0.5
    assert 0.5 < (percentile(spread, 0.99) or 0) <= 1.0


def test_beyond_the_last_bound_the_bound_is_given() -> None:
    assert percentile(buckets(100.0, 200.0), 0.5) == 5.0


@given(st.lists(st.floats(0.001, 20), min_size=1, max_size=30), st.floats(0.01, 1))
def test_percentiles_agree_with_sorting(values: list[float], share: float) -> None:
    found = percentile(buckets(*values), share)
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    edges = [0.0, *BOUNDS, math.inf]
    low = max(edge for edge in edges if edge < exact or edge == 0.0)
    high = min(edge for edge in edges if edge >= exact)
    assert found is not None
    assert low - 1e-4 <= found <= high + 1e-4


def test_the_difference_forgets_what_was_before() -> None:
    old, new = buckets(0.05, 0.05, 0.05), buckets(0.05, 0.05, 0.05, 3.0)
    assert percentile(tuple(difference(old, new)), 0.5) == pytest.approx(3.0)
    assert percentile(tuple(difference((), new)), 0.5) == pytest.approx(0.0667, abs=1e-3)


class _Server:
    """What History reads, with numbers set by the test."""

    def __init__(self) -> None:
        self.deaths: list[float] = []
        self.sample = Sample(0.0, 0.0, EngineStats(), 0)

    def history(self) -> History:
        return History(lambda: self.sample, self.deaths.append)


@pytest.fixture
def server() -> _Server:
    return _Server()


def test_a_death_is_told_once(server: _Server) -> None:
    recorder = server.history()
    for restarts in (0, 1, 1, 3):
        advance(server, recorder, restarts=restarts)
    assert server.deaths == [4.0, 8.0]


def advance(server: _Server, recorder: History, **stats: Any) -> HistoryPoint:
    """Two seconds later, with these counters."""
    old = server.sample
    moved = EngineStats(**{**{name: getattr(old.stats, name) for name in stats}, **stats})
    server.sample = replace(old, clock=old.clock + 2, time=old.time + 2, stats=moved)
    recorder.take()
    point = recorder.newest()
    assert point is not None
    return point


def test_rates_are_tokens_per_second(server: _Server) -> None:
    recorder = server.history()
    for step in range(20):
        point = advance(server, recorder, generation_tokens=100 * step, prompt_tokens=10 * step)
    assert point.generation_rate == pytest.approx(50)
    assert point.prompt_rate == pytest.approx(5)
    for _ in range(history.RATE_OVER):
        point = advance(server, recorder, generation_tokens=1900, prompt_tokens=190)
    assert point.generation_rate == 0


def test_the_series_are_bounded_and_of_one_length(server: _Server) -> None:
    recorder = server.history()
    for _ in range(history.KEPT + 50):
        advance(server, recorder)
    series = recorder.series()
    assert {len(column) for column in series.values()} == {history.KEPT}
    assert series["time"] == sorted(series["time"])


def test_percentiles_are_those_of_the_last_minutes(server: _Server) -> None:
    recorder = server.history()
    server.sample = replace(server.sample, ttft=buckets(4.0, 4.0, 4.0))
    advance(server, recorder)
    server.sample = replace(server.sample, ttft=buckets(4.0, 4.0, 4.0, 0.05))
    point = advance(server, recorder)
    assert (point.ttft["p50"] or 1) < 0.1
    assert recorder.latency()["time_to_first_token"]["count"] == 1
    for _ in range(history.POINT_OVER):
        point = advance(server, recorder)
    assert point.ttft["p50"] is None


def test_no_engine_no_sample() -> None:
    recorder = History(lambda: None, lambda moment: None)
    recorder.take()
    assert recorder.newest() is None
    assert recorder.latency() == {}


def test_repeated_errors_are_counted_and_hide_no_other() -> None:
    events = FaultLog()
    events.add(Event("error", "queue_full", 1.0, 503, "/v1/chat/completions"))
    for second in range(1000):
        events.add(Event("error", "invalid_api_key", second, 401, "/v1/models"))
    newest, other = events
    assert (newest.code, newest.count, newest.time) == ("invalid_api_key", 1000, 999)
    assert other.code == "queue_full"
    for number in range(100):
        events.add(Event("error", "not_found", number, 404, f"/{number}"))
    assert len(list(events)) == history.MOST_EVENTS
