"""Percentiles, what is derived of one answer, and bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestrale.bench.apis import ReportedUsage
from maestrale.bench.client import Exchange
from maestrale.bench.load import LoadPoint, RequestRecord, Run
from maestrale.bench.results import measure
from maestrale.bench.statistics import (
    Latency,
    latency,
    parse_bounds,
    percentile,
    summarise,
    tokens_within,
)
from maestrale.errors import CannotBench

FLOATS = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def exchange(started: float, *times: float, tokens: int, error: str | None = None) -> Exchange:
    return Exchange(
        started=started,
        ended=times[-1] if times else started,
        first_token=times[0] if times else None,
        times=list(times),
        usage=ReportedUsage(prompt_tokens=10, completion_tokens=tokens),
        error=error,
    )


@settings(deadline=None)
@given(FLOATS, st.integers(0, 100))
def test_percentiles_are_numpys(sample: list[float], percent: int) -> None:
    ours = percentile(sorted(sample), percent)
    assert ours == pytest.approx(float(np.percentile(sample, percent)), rel=1e-9, abs=1e-9)


def test_a_summary() -> None:
    found = summarise([3.0, 1.0, 2.0])
    assert (found.count, found.mean, found.p50, found.max) == (3, 2.0, 2.0, 3.0)
    assert summarise([]).count == 0


def test_the_times_of_an_answer() -> None:
    # Four arrivals that brought nine tokens: the first one, then eight in 0.8 s.
    found = latency(exchange(10.0, 10.5, 10.7, 11.1, 11.3, tokens=9))
    assert found is not None
    assert found.ttft == pytest.approx(0.5)
    assert found.e2e == pytest.approx(1.3)
    assert found.tpot == pytest.approx(0.1)
    assert found.itl == pytest.approx((0.2, 0.4, 0.2))


def test_one_token_has_no_time_per_token_after_it() -> None:
    found = latency(exchange(0.0, 0.5, tokens=1))
    assert found is not None
    assert found.tpot is None


def test_a_failed_answer_has_no_latency() -> None:
    assert latency(exchange(0.0, 0.5, tokens=1, error="HTTP 503 queue_full")) is None


def test_tokens_count_where_they_arrived() -> None:
    one = exchange(0.0, 1.0, 2.0, 3.0, 4.0, tokens=8)
    assert tokens_within(one, 0.0, 2.5) == pytest.approx(4.0)
    assert tokens_within(one, 0.0, 9.0) == pytest.approx(8.0)


def test_bounds() -> None:
    bounds = parse_bounds("ttft:500ms, tpot:0.05s")
    assert bounds.most == {"ttft": 0.5, "tpot": 0.05}
    assert str(bounds) == "ttft ≤ 500 ms, tpot ≤ 50 ms"
    assert bounds.met(Latency(0.5, 9.0, 0.05, ()))
    assert not bounds.met(Latency(0.51, 9.0, 0.05, ()))
    assert not bounds.met(Latency(0.5, 9.0, 0.06, ()))
    assert bounds.met(Latency(0.5, 9.0, None, ()))  # one token
    assert not parse_bounds("itl:100ms").met(Latency(0.1, 1.0, 0.01, (0.01, 0.2)))


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft:500", "speed:5ms", "ttft:1s,ttft:2s", "ttft:-1s"]
)
def test_what_is_no_bound(text: str) -> None:
    with pytest.raises(CannotBench, match="--slo"):
        parse_bounds(text)


def run_of(*exchanges: Exchange, ended: float) -> Run:
    run = Run(LoadPoint(concurrency=2, duration=ended), begun=0.0)
    run.records = [RequestRecord("one", each) for each in exchanges]
    run.ended = ended
    return run


def test_only_what_falls_into_the_window_counts_for_rates() -> None:
    inside = exchange(0.0, 1.0, 2.0, tokens=20)
    beyond = exchange(1.0, 3.0, 5.0, tokens=10)  # half of it comes after the window
    found = measure(run_of(inside, beyond, ended=4.0), parse_bounds("ttft:1500ms"))
    assert found.output_tokens_per_second == pytest.approx(25 / 4)
    assert found.completion_tokens == 30
    assert found.requests_per_second == pytest.approx(1 / 4)
    assert found.input_tokens_per_second == pytest.approx(20 / 4)
    assert found.goodput == pytest.approx(1 / 4)
    assert found.good_share == pytest.approx(1 / 2)
    assert sum(found.tokens_each_second) == pytest.approx(25)


def test_failures_are_counted_by_kind_and_never_as_good() -> None:
    refused = exchange(0.0, tokens=0, error="HTTP 503 queue_full")
    found = measure(
        run_of(exchange(0.0, 1.0, tokens=1), refused, refused, ended=2.0), parse_bounds("e2e:9s")
    )
    assert (found.requests, found.succeeded) == (3, 1)
    assert found.errors == {"HTTP 503 queue_full": 2}
    assert found.good_share == pytest.approx(1 / 3)


def test_a_late_generator_is_told_of() -> None:
    run = run_of(exchange(0.0, 1.0, tokens=1), ended=2.0)
    assert measure(run).warnings == []
    run.lateness = [0.2]
    run.generator_share = 0.97
    assert len(measure(run).warnings) == 2
