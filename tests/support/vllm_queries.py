"""What vLLM's public Grafana dashboards ask Prometheus for, by metric.

From its examples `prometheus_grafana/grafana.json`, `dashboards/grafana/*.json` as of 2026.
Left out: what needs a part that this server doesn't have (KV connectors and offloading,
LoRA, images, speculative decoding, sleep mode's operations, FLOP estimates).
"""

from __future__ import annotations

from collections.abc import Iterator

SELECTORS = (
    '{model_name="$model_name"}',
    '{job=~"$job", model_name=~"$model_name", instance=~"$instance", engine=~"$engine"}',
)
PERCENTILES = (0.5, 0.9, 0.95, 0.99)
SECONDS = (
    "vllm:e2e_request_latency_seconds",
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
)
COUNTS = (
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_prefill_kv_computed_tokens",
    "vllm:request_params_n",
    "vllm:request_params_max_tokens",
    "vllm:iteration_tokens_total",
)
COUNTERS = (
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_cached_total",
    "vllm:prompt_tokens_by_source_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
)
GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:engine_sleep_state",
    "vllm:cache_config_info",
)
# Names of earlier versions, which dashboards made for them still ask for.
OLDER = (
    "vllm:gpu_cache_usage_perc",
    "vllm:cpu_cache_usage_perc",
    "vllm:num_requests_swapped",
    "vllm:gpu_prefix_cache_queries_total",
    "vllm:gpu_prefix_cache_hits_total",
    "vllm:time_per_output_token_seconds_bucket",
    "vllm:time_per_output_token_seconds_sum",
    "vllm:time_per_output_token_seconds_count",
)
HTTP = '{job=~"$job", instance=~"$instance"}'
# (metric, labels that a panel picks out)
PICKED = (
    ("vllm:num_requests_waiting_by_reason", {"reason": "capacity"}),
    ("vllm:num_requests_waiting_by_reason", {"reason": "deferred"}),
    ("vllm:engine_sleep_state", {"sleep_state": "awake"}),
    ("vllm:engine_sleep_state", {"sleep_state": "discard_all"}),
    ("vllm:prompt_tokens_by_source_total", {"source": "local_compute"}),
    ("vllm:prompt_tokens_by_source_total", {"source": "local_cache_hit"}),
    ("vllm:prompt_tokens_by_source_total", {"source": "external_kv_transfer"}),
    ("vllm:request_success_total", {"finished_reason": "stop"}),
    ("vllm:request_success_total", {"finished_reason": "length"}),
    ("vllm:request_success_total", {"finished_reason": "abort"}),
    ("vllm:request_success_total", {"finished_reason": "error"}),
    # Service levels are picked by a bucket's bound.
    *(("vllm:time_to_first_token_seconds_bucket", {"le": le})
      for le in ("0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0")),
    *(("vllm:request_time_per_output_token_seconds_bucket", {"le": le})
      for le in ("0.025", "0.05", "0.075", "0.1", "0.2", "0.5")),
    ("vllm:request_prompt_tokens_bucket", {"le": "1000.0"}),
)  # fmt: skip


def queries() -> Iterator[str]:
    """PromQL with Grafana's variables in it."""
    for selector in SELECTORS:
        for name in (*SECONDS, *COUNTS):
            rate = f"{selector}[$__rate_interval]"
            for percentile in PERCENTILES:
                buckets = f"sum by(le) (rate({name}_bucket{rate}))"
                yield f"histogram_quantile({percentile}, {buckets})"
            yield f"rate({name}_sum{rate}) / rate({name}_count{rate})"
            yield f"sum by(le) (increase({name}_bucket{rate}))"
        for name in COUNTERS:
            yield f"sum(rate({name}{selector}[$__rate_interval]))"
        yield from (f"{name}{selector}" for name in (*GAUGES, *OLDER))
        running = f"vllm:num_requests_running{selector}"
        hits, looked_up = (f"vllm:prefix_cache_{n}_total{selector}" for n in ("hits", "queries"))
        yield (
            f"sum(rate({hits}[$__rate_interval])) / (sum(rate({looked_up}[$__rate_interval])) > 0)"
        )
        yield f"sum by(finished_reason) (increase(vllm:request_success_total{selector}[$__range]))"
        yield f"max_over_time(vllm:kv_cache_usage_perc{selector}[$__range])"
        ended = f"vllm:request_success_total{selector}"
        yield f"(60 * sum(rate({ended}[5m]))) and on () count({running})"
        yield (
            "max by (model_name) ((time() - process_start_time_seconds) * on (job, instance) "
            f"group_left (model_name) group by (job, instance, model_name) ({running}))"
        )
    for name, labels in PICKED:
        picked = ", ".join(f'{key}="{value}"' for key, value in labels.items())
        yield f'{name}{{model_name="$model_name", {picked}}}'
    yield f"sum by (status) (rate(http_requests_total{HTTP}[$__rate_interval]))"
    yield f"sum by (handler) (rate(http_requests_total{HTTP}[$__rate_interval]))"
    seconds, count = (
        f"sum by (handler) (rate(http_request_duration_seconds_{part}{HTTP}[$__rate_interval]))"
        for part in ("sum", "count")
    )
    yield f"{seconds} / ({count} > 0)"
    yield f"sum by (instance) (rate(process_cpu_seconds_total{HTTP}[$__rate_interval]))"
    yield f"process_resident_memory_bytes{HTTP}"
    yield f"sum(process_open_fds{HTTP}) / sum(process_max_fds{HTTP})"
