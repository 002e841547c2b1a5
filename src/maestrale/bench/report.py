"""The result to read and to keep: tables in the terminal, JSON, and one HTML page."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maestrale.bench.apis import APIS
from maestrale.bench.plot import Line, chart
from maestrale.bench.results import BenchReport, Latencies, Measurement
from maestrale.bench.statistics import Summary
from maestrale.printable import printable_json
from maestrale.verify.report import page_template

MEASURES = (
    ("ttft", "time to first token"),
    ("tpot", "time per output token"),
    ("itl", "pause between pieces"),
    ("e2e", "whole answer"),
)
_DEFINITIONS = (
    "TTFT: from the request to the first text. TPOT: from the first text to the last, divided by "
    "the tokens after the first. Pause (inter-token latency): between two arrivals of text. "
    "Tokens are the server's own count (usage)."
)


def as_json(report: BenchReport) -> str:
    """Everything, with times in seconds."""
    return printable_json(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())


def print_report(console: Console, report: BenchReport) -> None:
    """The tables: throughput for each load, then latencies, then the kinds of requests."""
    console.print()
    console.print(_throughput(report))
    console.print()
    console.print(_latency_table(report))
    kinds = _kind_table(report)
    if kinds is not None:
        console.print()
        console.print(kinds)
    for one in report.measurements:
        for error, count in one.errors.items():
            console.print(Text(f"✗ {one.load}: {count} times {error}", style="bold red"))
        for warning in one.warnings:
            console.print(Text(f"! {one.load}: {warning}", style="yellow"))


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table


def _throughput(report: BenchReport) -> Table:
    headings = ["load", "requests", "failed", "req/s", "tok/s in", "tok/s out"]
    if report.bounds:
        headings += ["good", "good/s"]
    table = _table(*headings)
    for one in report.measurements:
        cells = [
            one.load,
            str(one.requests),
            str(one.requests - one.succeeded),
            f"{one.requests_per_second:.2f}",
            f"{one.input_tokens_per_second:.0f}",
            f"{one.output_tokens_per_second:.1f}",
        ]
        if report.bounds:
            cells += [f"{one.good_share or 0:.0%}", f"{one.goodput or 0:.2f}"]
        table.add_row(*cells)
    return table


def _latency_table(report: BenchReport) -> Table:
    table = _table("latency in ms", "load", "p50", "p90", "p99", "max")
    for name, title in measured(report):
        for number, one in enumerate(report.measurements):
            found: Summary = getattr(one.latencies, name)
            table.add_row("" if number else title, one.load, *_milliseconds(found))
    return table


def measured(report: BenchReport) -> list[tuple[str, str]]:
    """(name, title) of those that say something: an answer that comes whole has no pieces."""
    streamed = APIS[report.api].streams
    return [(name, title) for name, title in MEASURES if streamed or name == "e2e"]


def _milliseconds(found: Summary) -> list[str]:
    if not found.count:
        return ["-"] * 4
    return [milliseconds(value) for value in (found.p50, found.p90, found.p99, found.max)]


def milliseconds(seconds: float) -> str:
    """Three digits or all before the point: 4.05, 52.1, 1340."""
    value = seconds * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _kind_table(report: BenchReport) -> Table | None:
    """The parts of a workload that has several, at each load."""
    if all(len(one.kinds) < 2 for one in report.measurements):
        return None
    last = ("ttft", "tpot") if APIS[report.api].streams else ("e2e",)
    titles = (f"{name.upper()} p50" for name in last)
    table = _table("request", "load", "n", "in", "cached", "out", *titles)
    labels = list(dict.fromkeys(kind.label for one in report.measurements for kind in one.kinds))
    for label in labels:
        rows = [(one, kind) for one in report.measurements for kind in one.kinds]
        members = [(one, kind) for one, kind in rows if kind.label == label]
        for number, (one, kind) in enumerate(members):
            table.add_row(
                "" if number else label,
                one.load,
                str(kind.requests),
                f"{kind.prompt_tokens:.0f}",
                f"{kind.cached_tokens:.0f}",
                f"{kind.completion_tokens:.0f}",
                *(_milliseconds(getattr(kind.latencies, name))[0] for name in last),
            )
    return table


def as_html(report: BenchReport) -> str:
    """One self-contained page with plots."""
    return page_template("maestrale.bench").render(
        report=report,
        plots=_plots(report),
        measures=measured(report),
        streamed=APIS[report.api].streams,
        milliseconds=milliseconds,
        definitions=_DEFINITIONS,
    )


def _plots(report: BenchReport) -> list[tuple[str, str]]:
    """(title, chart) for the page; those over the load need two loads at least."""
    found = [one for one in report.measurements if one.succeeded]
    streamed = APIS[report.api].streams
    plots = []
    if len(found) > 1:
        if streamed:
            plots += [
                _over_throughput("Time to first token as load grows", found, "ttft"),
                _over_throughput("Time per output token as load grows", found, "tpot"),
            ]
        over_load = [(one.concurrency or one.rate or 0, one) for one in found]
        which = "output" if streamed else "input"
        speed = [(load, getattr(one, f"{which}_tokens_per_second")) for load, one in over_load]
        unit = "requests at once" if found[0].concurrency else "conversations a second"
        lines = [Line(which, speed)]
        plots.append(
            ("Throughput", chart("Throughput", unit, "tokens a second", lines, log_x=True))
        )
    first_token = [
        Line(
            one.load,
            [(value, float(percent)) for percent, value in enumerate(one.ttft_sample)],
            marks=False,
        )
        for one in found
    ]
    title = f"Share of answers {'whose first token is' if streamed else 'that are'} there"
    plots.append((title, chart(title, "seconds since the request", "%", first_token)))
    seconds = [
        Line(one.load, [(at + 1, count) for at, count in enumerate(one.tokens_each_second)],
             marks=False)
        for one in found
        if streamed and len(one.tokens_each_second) > 1
    ]  # fmt: skip
    if seconds:
        title = "Tokens in each second"
        plots.append((title, chart(title, "second of the run", "tokens", seconds)))
    return plots


def _over_throughput(title: str, found: list[Measurement], measure: str) -> tuple[str, str]:
    lines = []
    for percentile in ("p50", "p90", "p99"):
        points = [
            (one.output_tokens_per_second, _value(one.latencies, measure, percentile) * 1000)
            for one in found
        ]
        notes = [one.load for one in found] if percentile == "p50" else []
        lines.append(Line(percentile, points, notes))
    return title, chart(title, "output tokens a second", "ms", lines)


def _value(latencies: Latencies, measure: str, percentile: str) -> float:
    value: float = getattr(getattr(latencies, measure), percentile)
    return value
