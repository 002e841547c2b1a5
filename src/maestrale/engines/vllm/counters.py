"""vLLM's statistics of each step, as the totals and gauges of EngineStats."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from maestrale.engines.base import EngineStats, StepTokens


class Counters:
    """What has happened since the start, and how things stood at vLLM's last step."""

    def __init__(self) -> None:
        self.steps = self.running = self.waiting = 0
        self.kv_cache_usage = 0.0
        self.step_tokens = StepTokens()
        self.prompt_tokens = self.generation_tokens = 0
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    def logger(self, _config: Any, _engine: int = 0) -> StatLogger:
        """What vLLM calls to make its logger."""
        return StatLogger(self)

    def stats(self) -> EngineStats:
        return EngineStats(
            steps=self.steps,
            running=self.running,
            waiting=self.waiting,
            kv_cache_usage=self.kv_cache_usage,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            preemptions=self.preemptions,
            prefix_cache_queries=self.prefix_queries,
            prefix_cache_hits=self.prefix_hits,
            step_tokens=self.step_tokens.counts,
            step_tokens_sum=self.step_tokens.sum,
        )


class StatLogger(StatLoggerBase):  # type: ignore[misc]
    """Called by vLLM's output handler, on the event loop, after each step."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        counters = self._counters
        counters.steps += 1
        if iteration_stats is not None:
            counters.preemptions += iteration_stats.num_preempted_reqs
            computed = iteration_stats.prompt_token_stats.computed
            counters.step_tokens.add(computed + iteration_stats.num_generation_tokens)
        if scheduler_stats is not None:
            counters.running = scheduler_stats.num_running_reqs
            counters.waiting = (
                scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            )
            counters.kv_cache_usage = scheduler_stats.kv_cache_usage
            cache = scheduler_stats.prefix_cache_stats
            if cache is not None:
                counters.prefix_queries += cache.queries
                counters.prefix_hits += cache.hits

    def log_engine_initialized(self) -> None:
        """Nothing to say: the engine describes itself."""
