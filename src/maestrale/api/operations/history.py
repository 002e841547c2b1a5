"""The last minutes of a model's metrics, kept for the status page.

Every two seconds one sample is taken from where /metrics takes its numbers; nothing is added to
the way of a token. Percentiles are read from the histograms' buckets, as Prometheus does it: from
what came between two samples.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from maestrale.engines.base import Engine, EngineStats
from maestrale.metrics import Metrics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

STEP = 2.0  # seconds between samples
KEPT = 300  # samples: ten minutes
RATE_OVER = 5  # samples that a rate is taken over
POINT_OVER = 30  # samples that a point's percentiles are taken over: a minute
WINDOW_OVER = 150  # samples that the page's figures are taken over: five minutes
MOST_EVENTS = 20

TTFT = "vllm:time_to_first_token_seconds"
GAP = "vllm:inter_token_latency_seconds"
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

Buckets = tuple[tuple[float, float], ...]
"""(upper bound in seconds, observations up to it since start), bounds ascending."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One model at one moment; counters since its start. `clock` is monotonic, in seconds."""

    time: float
    clock: float
    stats: EngineStats
    waiting: int
    ttft: Buckets = ()
    gap: Buckets = ()


@dataclass(slots=True)
class Event:
    """Something that went wrong: an answer with an error, or the death of a model's engine."""

    kind: str
    code: str
    time: float
    status: int = 0
    path: str = ""
    request_id: str = ""
    model: str = ""
    count: int = 1

    def same_as(self, other: Event) -> bool:
        return (self.kind, self.code, self.status, self.path, self.model) == (
            *(other.kind, other.code, other.status, other.path, other.model),
        )


@dataclass(slots=True)
class HistoryPoint:
    """What the charts show of one sample; None where there was nothing to measure."""

    sample: Sample
    prompt_rate: float = 0.0  # tokens/s
    generation_rate: float = 0.0  # tokens/s
    ttft: dict[str, float | None] = field(default_factory=dict)
    gap: dict[str, float | None] = field(default_factory=dict)


class FaultLog:
    """The last things that went wrong; what repeats is counted, so that it hides nothing else."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)

    def __iter__(self) -> Iterator[Event]:
        """Newest first."""
        return reversed(self._events)

    def add(self, event: Event) -> None:
        same = next((each for each in self._events if each.same_as(event)), None)
        if same is not None:
            self._events.remove(same)
            event.count += same.count
        self._events.append(event)


class History:
    """Samples of one model, newest last."""

    def __init__(
        self, read: Callable[[], Sample | None], on_restart: Callable[[float], None]
    ) -> None:
        """`read` takes a sample, if there is an engine to take it from; `on_restart` is told when
        the engine was replaced.
        """
        self._read = read
        self._on_restart = on_restart
        self._points: deque[HistoryPoint] = deque(maxlen=KEPT)

    def take(self) -> None:
        """Take one sample."""
        sample = self._read()
        if sample is None:
            return
        if self._points:
            before = self._points[-1].sample.stats.restarts
            if sample.stats.restarts > before:
                self._on_restart(sample.time)
        self._points.append(self._point(sample))

    def newest(self) -> HistoryPoint | None:
        return self._points[-1] if self._points else None

    def latency(self) -> dict[str, Any]:
        """Percentiles of the last minutes, in seconds."""
        if not self._points:
            return {}
        new = self._points[-1].sample
        old = self._back(WINDOW_OVER)
        return {
            "window_seconds": round(new.clock - old.clock),
            "time_to_first_token": _summary(old.ttft, new.ttft),
            "inter_token": _summary(old.gap, new.gap),
        }

    def series(self) -> dict[str, list[Any]]:
        """The charts' columns, oldest first; all of one length."""
        points = list(self._points)
        columns: dict[str, list[Any]] = {
            "time": [round(point.sample.time, 1) for point in points],
            "running": [point.sample.stats.running for point in points],
            "waiting": [point.sample.waiting for point in points],
            "kv_cache_usage": [round(point.sample.stats.kv_cache_usage, 4) for point in points],
            "prompt_tokens_per_second": [round(point.prompt_rate, 1) for point in points],
            "generation_tokens_per_second": [round(point.generation_rate, 1) for point in points],
            "restarts": [point.sample.stats.restarts for point in points],
        }
        for name in ("p50", "p90"):
            columns[f"ttft_{name}"] = [point.ttft.get(name) for point in points]
            columns[f"inter_token_{name}"] = [point.gap.get(name) for point in points]
        return columns

    def _point(self, sample: Sample) -> HistoryPoint:
        if not self._points:
            return HistoryPoint(sample)
        old = self._back(RATE_OVER - 1)
        seconds = max(sample.clock - old.clock, 1e-6)
        minute = self._back(POINT_OVER - 1)
        stats, before = sample.stats, old.stats
        return HistoryPoint(
            sample,
            max(0.0, (stats.prompt_tokens - before.prompt_tokens) / seconds),
            max(0.0, (stats.generation_tokens - before.generation_tokens) / seconds),
            _percentiles(minute.ttft, sample.ttft),
            _percentiles(minute.gap, sample.gap),
        )

    def _back(self, samples: int) -> Sample:
        """The sample so many before the newest; the oldest, if there are fewer."""
        return self._points[max(0, len(self._points) - 1 - samples)].sample


def read(engine: Engine, waiting: int, model_name: str, metrics: Metrics) -> Sample:
    """One sample of this moment. `waiting`: sequences that wait before the engine."""
    stats = engine.stats()
    buckets: dict[str, dict[float, float]] = {TTFT: {}, GAP: {}}
    for family in metrics.collect(f"{TTFT}_bucket", f"{GAP}_bucket"):
        if family.name in buckets:
            _add_buckets(buckets[family.name], family, model_name)
    return Sample(
        time.time(),
        time.monotonic(),
        stats,
        stats.waiting + waiting,
        tuple(sorted(buckets[TTFT].items())),
        tuple(sorted(buckets[GAP].items())),
    )


def _add_buckets(into: dict[float, float], family: Metric, model_name: str) -> None:
    for sample in family.samples:
        ours = sample.labels.get("model_name") == model_name
        if ours and sample.name.endswith("_bucket"):
            bound = float(sample.labels["le"])
            into[bound] = into.get(bound, 0.0) + sample.value


def _summary(old: Buckets, new: Buckets) -> dict[str, Any]:
    count = (new[-1][1] if new else 0) - (old[-1][1] if old else 0)
    return {"count": int(count), **_percentiles(old, new)}


def _percentiles(old: Buckets, new: Buckets) -> dict[str, float | None]:
    between = tuple(difference(old, new))
    return {name: percentile(between, share) for name, share in PERCENTILES.items()}


def difference(old: Buckets, new: Buckets) -> Iterable[tuple[float, float]]:
    """What was observed between two readings of a histogram."""
    before = dict(old)
    return ((bound, count - before.get(bound, 0.0)) for bound, count in new)


def percentile(buckets: Buckets, share: float) -> float | None:
    """The value below which `share` (0 to 1) of the observations lie, within its bucket's bounds.

    None without observations. Beyond the last finite bound that bound is all that's known.
    """
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0:
        return None
    rank = share * total
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            if math.isinf(bound):
                return low
            return round(low + (bound - low) * (rank - below) / (count - below), 5)
        low, below = bound, count
    return low
