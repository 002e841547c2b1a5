"""The report: every number in it, one page, no host but itself."""

from __future__ import annotations

import io
import json
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from maestrale.bench.apis import ReportedUsage
from maestrale.bench.client import Exchange
from maestrale.bench.load import LoadPoint, RequestRecord, Run
from maestrale.bench.plot import Line, chart, nice_step, spelled
from maestrale.bench.report import as_html, as_json, print_report
from maestrale.bench.results import BenchReport, measure
from maestrale.bench.statistics import parse_bounds

NASTY = "<script>alert('x')</script>"


def run_of(point: LoadPoint, pace: float) -> Run:
    run = Run(point, begun=0.0, ended=8.0)
    for number in range(6):
        times = [number + pace * (step + 1) for step in range(10)]
        usage = ReportedUsage(prompt_tokens=100, completion_tokens=10)
        label = "first question" if number % 2 else "follow-up"
        answer = Exchange(float(number), times[-1], times[0], times, usage=usage)
        run.records.append(RequestRecord(label, answer))
    run.records.append(RequestRecord("follow-up", Exchange(0.0, 1.0, error=f"HTTP 500 {NASTY}")))
    return run


def report(*points: LoadPoint) -> BenchReport:
    found = BenchReport(
        maestrale="0.1.0",
        started="2026-01-01 00:00 UTC",
        server="http://127.0.0.1:8000",
        model=NASTY,
        workload="chat",
        seed=0,
        bounds="ttft ≤ 500 ms",
        machine="2 CPUs",
        command="maestrale bench",
    )
    found.measurements = [
        measure(run_of(point, 0.05 * (number + 1)), parse_bounds("ttft:500ms"))
        for number, point in enumerate(points)
    ]
    return found


POINTS = (LoadPoint(concurrency=1), LoadPoint(concurrency=8), LoadPoint(concurrency=32))


def test_json_holds_everything() -> None:
    data = json.loads(as_json(report(*POINTS)))
    assert [one["load"] for one in data["measurements"]] == ["1 at once", "8 at once", "32 at once"]
    first = data["measurements"][0]
    assert first["errors"] == {f"HTTP 500 {NASTY}": 1}
    assert set(first["latencies"]) == {"ttft", "tpot", "itl", "e2e"}
    assert {"count", "mean", "p50", "p90", "p99", "max"} == set(first["latencies"]["ttft"])
    assert [kind["label"] for kind in first["kinds"]] == ["follow-up", "first question"]


@pytest.mark.parametrize("points", [POINTS, POINTS[:1], (LoadPoint(rate=0.5), LoadPoint(rate=2.0))])
def test_html_is_one_page_without_hosts_or_scripts(points: tuple[LoadPoint, ...]) -> None:
    page = as_html(report(*points))
    assert "<script" not in page
    assert NASTY not in page
    assert not re.findall(r"(?:src|href|url)\s*[=(]", page)
    assert re.findall(r"https?://[^\s<\"]+", page) == ["http://127.0.0.1:8000"]
    assert page.count("<svg") == (5 if len(points) > 1 else 2)
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)


def test_an_empty_measurement_has_a_page_too() -> None:
    found = report()
    run = Run(LoadPoint(concurrency=1), begun=0.0, ended=1.0)
    run.records.append(RequestRecord("a", Exchange(0.0, 1.0, error="connection refused")))
    found.measurements = [measure(run)]
    assert "connection refused" in as_html(found)
    assert "nan" not in as_json(found).lower()


def test_the_terminal_shows_loads_latencies_kinds_and_errors_in_80_columns() -> None:
    out = io.StringIO()
    print_report(Console(file=out, width=80), report(*POINTS))
    text = out.getvalue()
    for part in ("32 at once", "time per output token", "first question", "HTTP 500", "good/s"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("most", "step"), [(1, 0.2), (4.9, 1), (7, 2), (23, 5), (100, 20), (0.003, 0.001), (0, 1)]
)
def test_ticks_are_round(most: float, step: float) -> None:
    assert nice_step(most) == pytest.approx(step)


def test_points_stay_within_the_picture() -> None:
    lines = [Line("a", [(1, 3), (32, 400), (500, 1e5)], ["x", "y", "z"])]
    for log_x in (False, True):
        svg = chart("t", "x", "y", lines, log_x=log_x)
        places = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
        assert len(places) == 3
        assert all(0 <= float(x) <= 460 and 0 <= float(y) <= 300 for x, y in places)


def test_a_chart_of_nothing_is_still_one() -> None:
    ElementTree.fromstring(chart("t", "x", "y", []).partition("<div")[0])
    assert (spelled(0.05), spelled(20.0), spelled(15000.0)) == ("0.05", "20", "15k")
