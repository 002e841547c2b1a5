"""The engine's own numbers, read when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from maestrale.engines.base import Engine, EngineStats, StepTokens
from maestrale.metrics import older
from maestrale.metrics.names import LABELS


class EngineCollector(Collector):
    """Gauges and counters of one engine; `queued` gives the sequences that wait before it."""

    def __init__(self, engine: Engine, labels: dict[str, str], queued: Callable[[], int]) -> None:
        self._engine = engine
        self._queued = queued
        self._values = list(labels.values())

    def collect(self) -> Iterable[Metric]:
        for metric in self._collect():
            yield metric
            if metric.name in older.NAMES:
                yield older.renamed(metric, older.NAMES[metric.name])
        for name in older.ALWAYS_ZERO:
            yield self._gauge(name, "Always 0: nothing is swapped to another memory.", 0)

    def _collect(self) -> Iterable[Metric]:
        stats = self._engine.stats()
        waiting = stats.waiting + self._queued()
        yield self._gauge("vllm:num_requests_running", "Sequences being decoded.", stats.running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences waiting for a place.", waiting)
        yield self._labelled(
            "vllm:num_requests_waiting_by_reason",
            "Sequences waiting, by reason: for a place (capacity), or held back (deferred).",
            "reason",
            {"capacity": waiting, "deferred": 0},
        )
        yield self._gauge(
            "vllm:kv_cache_usage_perc",
            "Share of the KV cache in use, 0 to 1.",
            stats.kv_cache_usage,
        )
        yield self._labelled(
            "vllm:engine_sleep_state",
            "Always awake: this engine can't be put to sleep.",
            "sleep_state",
            {"awake": 1, "weights_offloaded": 0, "discard_all": 0},
        )
        yield self._gauge(
            "maestrale_engine_up", "1 while there is an engine, 0 while it is replaced.", stats.up
        )
        yield from self._counters(stats)
        yield self._step_tokens(stats)
        yield from self._configuration()

    def _counters(self, stats: EngineStats) -> Iterable[Metric]:
        for name, text, value in (
            ("vllm:num_preemptions", "Sequences put back to wait.", stats.preemptions),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits),
            ("maestrale_engine_restarts", "Engine processes replaced.", stats.restarts),
            (
                "maestrale_replayed_requests",
                "Sequences whose engine died, and that went to its successor.",
                stats.replayed,
            ),
            (
                "maestrale_replay_mismatches",
                "Sequences ended because a replay gave other tokens.",
                stats.mismatched,
            ),
            (
                "maestrale_refused_requests",
                "Sequences ended because they stop the engine.",
                stats.refused,
            ),
        ):
            counter = CounterMetricFamily(name, text, labels=LABELS)
            counter.add_metric(self._values, value)
            yield counter

    def _step_tokens(self, stats: EngineStats) -> Metric:
        counts = stats.step_tokens or (0,) * (len(StepTokens.BOUNDS) + 1)
        bounds = [*map(floatToGoString, StepTokens.BOUNDS), "+Inf"]
        histogram = HistogramMetricFamily(
            "vllm:iteration_tokens_total", "Tokens computed in a step.", labels=LABELS
        )
        histogram.add_metric(
            self._values,
            list(zip(bounds, map(float, accumulate(counts)), strict=True)),
            stats.step_tokens_sum,
        )
        return histogram

    def _configuration(self) -> Iterable[Metric]:
        info = self._engine.describe()
        yield self._info(
            "vllm:cache_config_info",
            "The KV cache; a block is what it is handed out in.",
            {
                "block_size": str(info.kv_block_tokens),
                "num_gpu_blocks": str(info.kv_capacity_tokens // info.kv_block_tokens),
                "enable_prefix_caching": str("prefix_cache" in info.features),
            },
        )
        yield self._info(
            "maestrale_engine_info",
            "The engine that runs the model.",
            {
                "kind": info.engine,
                "version": info.version,
                "fingerprint": info.fingerprint,
                "deterministic": str("deterministic" in info.features),
                "max_model_len": str(info.max_model_len),
                "max_num_seqs": str(info.max_num_seqs),
            },
        )

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(name, text, labels=LABELS)
        gauge.add_metric(self._values, value)
        return gauge

    def _labelled(self, name: str, text: str, label: str, values: dict[str, float]) -> Metric:
        gauge = GaugeMetricFamily(name, text, labels=(*LABELS, label))
        for key, value in values.items():
            gauge.add_metric([*self._values, key], value)
        return gauge

    def _info(self, name: str, text: str, labels: dict[str, str]) -> Metric:
        gauge = GaugeMetricFamily(name, text, labels=(*LABELS, *labels))
        gauge.add_metric([*self._values, *labels.values()], 1)
        return gauge
