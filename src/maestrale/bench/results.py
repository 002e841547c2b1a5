"""What a benchmark found: a Measurement for each load, ready for the terminal, JSON and HTML."""

from __future__ import annotations

from collections import Counter, defaultdict

import msgspec

from maestrale.bench.load import RequestRecord, Run
from maestrale.bench.statistics import Bounds, Latency, Summary, latency, summarise, tokens_within

BUSY_GENERATOR = 0.85
"""Share of a core above which the generator itself may be what limits."""
LATE = 0.01
"""Seconds of lateness (p99) above which an open loop's arrivals are not as planned."""


class Latencies(msgspec.Struct, frozen=True):
    """In seconds."""

    ttft: Summary
    tpot: Summary
    itl: Summary
    e2e: Summary


class LabelResults(msgspec.Struct, frozen=True):
    """The requests of one label within a workload."""

    label: str
    requests: int
    prompt_tokens: float
    """Mean; so are the next two."""
    completion_tokens: float
    cached_tokens: float
    latencies: Latencies


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One load. Rates are a second, within the window of `seconds`."""

    load: str
    concurrency: int | None
    rate: float | None
    seconds: float
    requests: int
    succeeded: int
    errors: dict[str, int]
    requests_per_second: float
    prompt_tokens: int
    completion_tokens: int
    input_tokens_per_second: float
    output_tokens_per_second: float
    goodput: float | None
    """Answers a second within the bounds; None where none were given."""
    good_share: float | None
    latencies: Latencies
    kinds: list[LabelResults]
    tokens_each_second: list[float]
    ttft_sample: list[float]
    """Quantiles of the time to first token at 0, 1, 2 ... 100 %."""
    generator_cpu_share: float
    """CPU of the generator, as a share of one core."""
    lateness_p99: float
    warnings: list[str]


class BenchReport(msgspec.Struct, kw_only=True):
    """A whole benchmark."""

    maestrale: str
    started: str
    server: str
    model: str
    api: str = "chat"
    workload: str
    seed: int
    bounds: str
    machine: str
    command: str
    measurements: list[Measurement] = []


def measure(run: Run, bounds: Bounds | None = None) -> Measurement:
    """Count what a run gave."""
    seconds = max(run.ended - run.begun, 1e-9)
    good = [(record, found) for record in run.records if (found := latency(record.exchange))]
    errors = Counter(record.exchange.error for record in run.records if record.exchange.error)
    usages = [record.exchange.usage for record, _ in good if record.exchange.usage]
    tokens = sum(tokens_within(record.exchange, run.begun, run.ended) for record, _ in good)
    # A prompt counts when its first token is there: that is when it has been read.
    read = sum(
        record.exchange.usage.prompt_tokens
        for record, _ in good
        if record.exchange.usage and (record.exchange.first_token or 0) <= run.ended
    )
    done = sum(record.exchange.ended <= run.ended for record, _ in good)
    kept = [record for record, found in good if bounds is not None and bounds.met(found)]
    within = sum(record.exchange.ended <= run.ended for record in kept)
    lateness = summarise(run.lateness).p99
    return Measurement(
        load=str(run.point),
        concurrency=run.point.concurrency,
        rate=run.point.rate,
        seconds=seconds,
        requests=len(run.records),
        succeeded=len(good),
        errors=dict(errors.most_common()),
        requests_per_second=done / seconds,
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        input_tokens_per_second=read / seconds,
        output_tokens_per_second=tokens / seconds,
        goodput=within / seconds if bounds is not None else None,
        good_share=len(kept) / len(run.records) if bounds is not None and run.records else None,
        latencies=_latencies([found for _, found in good]),
        kinds=_kinds(good),
        tokens_each_second=_each_second(run, [record for record, _ in good]),
        ttft_sample=_quantiles([found.ttft for _, found in good]),
        generator_cpu_share=run.generator_share,
        lateness_p99=lateness,
        warnings=_warnings(run.generator_share, lateness, errors),
    )


def _latencies(found: list[Latency]) -> Latencies:
    return Latencies(
        ttft=summarise([one.ttft for one in found]),
        tpot=summarise([one.tpot for one in found if one.tpot is not None]),
        itl=summarise([pause for one in found for pause in one.itl]),
        e2e=summarise([one.e2e for one in found]),
    )


def _kinds(good: list[tuple[RequestRecord, Latency]]) -> list[LabelResults]:
    by_label: defaultdict[str, list[tuple[RequestRecord, Latency]]] = defaultdict(list)
    for record, found in good:
        by_label[record.label].append((record, found))
    kinds = []
    for label, members in by_label.items():
        usages = [record.exchange.usage for record, _ in members if record.exchange.usage]
        kinds.append(
            LabelResults(
                label=label,
                requests=len(members),
                prompt_tokens=sum(one.prompt_tokens for one in usages) / len(members),
                completion_tokens=sum(one.completion_tokens for one in usages) / len(members),
                cached_tokens=sum(one.cached_tokens for one in usages) / len(members),
                latencies=_latencies([found for _, found in members]),
            )
        )
    return kinds


def _each_second(run: Run, records: list[RequestRecord]) -> list[float]:
    """Tokens that arrived in each second of the window."""
    buckets = [0.0] * max(1, int(run.ended - run.begun))
    for record in records:
        exchange = record.exchange
        times = exchange.times or [exchange.ended]
        each = exchange.usage.completion_tokens / len(times) if exchange.usage else 0.0
        for time in times:
            second = int(time - run.begun)
            if 0 <= second < len(buckets):
                buckets[second] += each
    return buckets


def _quantiles(sample: list[float]) -> list[float]:
    if not sample:
        return []
    ordered = sorted(sample)
    return [ordered[round((len(ordered) - 1) * percent / 100)] for percent in range(101)]


def _warnings(share: float, lateness: float, errors: Counter[str]) -> list[str]:
    found = []
    if share > BUSY_GENERATOR:
        found.append(
            f"The generator itself used {share:.0%} of a core: the server may be quicker than this."
        )
    if lateness > LATE:
        found.append(
            f"Requests were sent up to {lateness * 1000:.0f} ms (p99) after their time: this "
            "machine is too busy. Their latency counts from when they were due."
        )
    if errors.get("no usage"):
        found.append(
            "Answers without 'usage' can't be counted in tokens; they are errors here. The server "
            "must know stream_options.include_usage."
        )
    return found
