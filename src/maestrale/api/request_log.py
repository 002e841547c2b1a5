"""The one line that the log has for each request."""

from __future__ import annotations

import time

from maestrale.api.context import RequestContext


def request_fields(context: RequestContext) -> dict[str, object]:
    """What is told of a request, in order. Times in seconds; nothing of prompt or answer."""
    fields: dict[str, object] = {
        "id": context.id,
        "status": context.status,
        "key": context.key,
        "model": context.model,
    }
    answer = context.answer
    if answer is not None:
        timings = answer.timings
        fields["prompt_tokens"] = answer.usage.prompt_tokens
        fields["cached_tokens"] = answer.usage.cached_tokens
        fields["completion_tokens"] = answer.usage.completion_tokens
        for name, seconds in (("queue", timings.queue), ("ttft", timings.ttft)):
            if seconds is not None:
                fields[name] = round(seconds, 3)
    fields["seconds"] = round(time.perf_counter() - context.started, 3)
    if answer is not None:
        if answer.tokens_per_second is not None:
            fields["tokens_per_second"] = round(answer.tokens_per_second, 1)
        fields["finish"] = finish_reason(context)
        fields["seed"] = answer.seed
    if context.refused:
        fields["refused"] = context.refused
    if context.error:
        fields["error"] = context.error
    return fields


def finish_reason(context: RequestContext) -> str:
    """How the answer ended, as /metrics counts it; several where choices differ."""
    answer = context.answer
    if answer is None:
        return ""
    reasons = set(map(str, answer.finish_reasons.values()))
    if len(answer.finish_reasons) < len(answer.requests):
        reasons.add("abort" if answer.aborted else "error")
    return ",".join(sorted(reasons))
