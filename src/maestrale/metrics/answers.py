"""Counters and histograms of answers.

Tokens are counted while an answer is under way: what runs is added up when scraped, so a token
costs nothing here. Histograms take each answer once, when it came to its end.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from maestrale.chat.answer import Answer
from maestrale.metrics.engine import OlderHistogram
from maestrale.metrics.names import (
    CHOICES,
    FIRST_TOKEN_SECONDS,
    GAP_SECONDS,
    LABELS,
    PHASE_SECONDS,
    TOKENS,
)

Counts = tuple[int, int, int, int]
"""Prompt tokens, those of them cached, tokens generated, those of them that are thoughts."""
FINISHED_REASONS = ("stop", "length", "abort", "error")


class AnswerMetrics:
    """The counters and histograms of answers, of all models; `of` gives those of one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.tokens = _TokenCounters()
        registry.register(self.tokens)
        self.success = Counter(
            "vllm:request_success",
            "Choices that ended, by reason: the client leaving is abort, a failure error.",
            (*LABELS, "finished_reason"),
            registry=registry,
        )
        seconds = self._histogram
        self.ttft = seconds(
            "vllm:time_to_first_token_seconds", "From request to first token.", FIRST_TOKEN_SECONDS
        )
        self.gap = seconds(
            "vllm:inter_token_latency_seconds", "Between deltas of one choice.", GAP_SECONDS
        )
        registry.register(OlderHistogram(self.gap, "vllm:time_per_output_token_seconds"))
        self.per_token = seconds(
            "vllm:request_time_per_output_token_seconds",
            "Mean time of a token after the first, by request.",
            GAP_SECONDS,
        )
        self.e2e = seconds(
            "vllm:e2e_request_latency_seconds", "From request to its last token.", PHASE_SECONDS
        )
        self.queue = seconds(
            "vllm:request_queue_time_seconds",
            "From prepared prompt to first step.",
            PHASE_SECONDS,
        )
        self.prefill = seconds(
            "vllm:request_prefill_time_seconds", "From first step to first token.", PHASE_SECONDS
        )
        self.decode = seconds(
            "vllm:request_decode_time_seconds", "From first token to last.", PHASE_SECONDS
        )
        self.inference = seconds(
            "vllm:request_inference_time_seconds", "From first step to last token.", PHASE_SECONDS
        )
        tokens = self._histogram
        self.prompt = tokens("vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self.computed = tokens(
            "vllm:request_prefill_kv_computed_tokens",
            "Prompt tokens of a request that were not found in the cache.",
            TOKENS,
        )
        self.generation = tokens(
            "vllm:request_generation_tokens", "Generated tokens of a request.", TOKENS
        )
        self.longest = tokens(
            "vllm:request_max_num_generation_tokens",
            "Generated tokens of a request's longest choice.",
            TOKENS,
        )
        self.n = tokens("vllm:request_params_n", "The parameter n.", CHOICES)
        self.max_tokens = tokens(
            "vllm:request_params_max_tokens", "The parameter max_tokens, where given.", TOKENS
        )

    def of(self, labels: dict[str, str]) -> ModelMetrics:
        """Those of one model, which are there from now on."""
        return ModelMetrics(self, labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, LABELS, registry=self._registry, buckets=buckets)


class ModelMetrics:
    """All that is counted of answers, for one model."""

    def __init__(self, all_models: AnswerMetrics, labels: dict[str, str]) -> None:
        each = all_models
        self._tokens = each.tokens.of(labels)
        self._success = {
            reason: each.success.labels(**labels, finished_reason=reason)
            for reason in FINISHED_REASONS
        }
        self.gap = each.gap.labels(**labels)
        self._ttft = each.ttft.labels(**labels)
        self._per_token = each.per_token.labels(**labels)
        self._e2e = each.e2e.labels(**labels)
        self._queue = each.queue.labels(**labels)
        self._prefill = each.prefill.labels(**labels)
        self._decode = each.decode.labels(**labels)
        self._inference = each.inference.labels(**labels)
        self._prompt = each.prompt.labels(**labels)
        self._computed = each.computed.labels(**labels)
        self._generation = each.generation.labels(**labels)
        self._longest = each.longest.labels(**labels)
        self._n = each.n.labels(**labels)
        self._max_tokens = each.max_tokens.labels(**labels)

    def begin(self, answer: Answer) -> None:
        """Count this answer's tokens from now on."""
        self._tokens.running.add(answer)

    def end(self, answer: Answer) -> None:
        """Count an answer that ended, well or not."""
        self._tokens.end(answer)
        timings, usage = answer.timings, answer.usage
        if timings.granted is None:
            return  # it was refused, and never began
        for reason in answer.finish_reasons.values():
            self._success[reason].inc()
        unfinished = len(answer.requests) - len(answer.finish_reasons)
        if unfinished:
            self._success["abort" if answer.aborted else "error"].inc(unfinished)
        ttft, queue = timings.ttft, timings.queue
        prefill, decode = timings.prefill, timings.decode
        if ttft is not None:
            self._ttft.observe(ttft)
        if timings.finished is None:
            return
        self._e2e.observe(timings.finished - timings.started)
        self._prompt.observe(usage.prompt_tokens)
        self._computed.observe(usage.prompt_tokens - usage.cached_tokens)
        self._generation.observe(usage.completion_tokens)
        self._longest.observe(max(answer.lengths.values()))
        self._n.observe(answer.options.n)
        if answer.options.max_tokens is not None:
            self._max_tokens.observe(answer.options.max_tokens)
        if queue is None or prefill is None or decode is None:
            return
        self._queue.observe(queue)
        self._prefill.observe(prefill)
        self._decode.observe(decode)
        self._inference.observe(prefill + decode)
        per_choice = usage.completion_tokens / len(answer.requests)
        if per_choice > 1:
            self._per_token.observe(decode / (per_choice - 1))


class _Tokens:
    """Tokens of one model's answers: of those that ended, and so far of those that run."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = list(labels.values())
        self.running: set[Answer] = set()
        self._ended: Counts = (0, 0, 0, 0)

    def end(self, answer: Answer) -> None:
        self.running.discard(answer)
        self._ended = _add(self._ended, _tokens(answer))

    def now(self) -> Counts:
        """What there is at this moment."""
        total = self._ended
        for answer in self.running:
            total = _add(total, _tokens(answer))
        return total


class _TokenCounters(Collector):
    """The tokens of all models."""

    def __init__(self) -> None:
        self._models: list[_Tokens] = []

    def of(self, labels: dict[str, str]) -> _Tokens:
        self._models.append(_Tokens(labels))
        return self._models[-1]

    def collect(self) -> Iterable[Metric]:
        now = [(each.labels, each.now()) for each in self._models]
        for place, (name, text) in enumerate(
            (
                ("vllm:prompt_tokens", "Prompt tokens, those found in the cache included."),
                ("vllm:prompt_tokens_cached", "Prompt tokens found in the cache."),
                ("vllm:generation_tokens", "Tokens generated."),
                ("maestrale_reasoning_tokens", "Tokens generated that are thoughts."),
            )
        ):
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for labels, counts in now:
                counter.add_metric(labels, counts[place])
            yield counter
        by_source = CounterMetricFamily(
            "vllm:prompt_tokens_by_source",
            "Prompt tokens computed, found in the cache, or brought from elsewhere (none here).",
            labels=(*LABELS, "source"),
        )
        for labels, (prompt, cached, *_) in now:
            for source, value in (
                ("local_compute", prompt - cached),
                ("local_cache_hit", cached),
                ("external_kv_transfer", 0),
            ):
                by_source.add_metric([*labels, source], value)
        yield by_source


def _tokens(answer: Answer) -> Counts:
    """Those of the prompt count once they are computed."""
    usage, timings = answer.usage, answer.timings
    prompt = usage.prompt_tokens if timings.first_token or timings.finished else 0
    cached = min(prompt, usage.cached_tokens)
    return prompt, cached, usage.completion_tokens, usage.reasoning_tokens


def _add(one: Counts, other: Counts) -> Counts:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]
