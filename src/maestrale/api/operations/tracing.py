"""OpenTelemetry traces: one span for each request, and under it one for each phase.

Spans are made when a request is over, from the times that the metrics use, so tracing costs an
answer nothing on its way. Names are those of the GenAI semantic conventions; prompts and answers
are never in them. The packages are an extra, imported only when traces are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from starlette.types import Scope

from maestrale import __version__
from maestrale.api.context import RequestContext, finish_reason
from maestrale.chat.answer import Answer
from maestrale.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

LAST_WORDS_MS = 2000  # for the spans not yet sent when the server ends
MISSING = (
    "Traces were asked for (--otlp-traces-endpoint, or a variable OTEL_EXPORTER_OTLP_...), but "
    "OpenTelemetry is not installed here. Install it: scripts/extra otel. "
    "Or serve without: OTEL_SDK_DISABLED=true."
)


class Tracer:
    """Sends spans to an OTLP collector, in batches, from a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` takes OTLP over HTTP. Raises: SettingsError when the extra isn't installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise SettingsError(MISSING) from error
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before what is given here.
        ours = {"service.name": "maestrale", "service.version": __version__}
        told = str(Resource.create().attributes["service.name"])
        if not told.startswith("unknown_service"):
            ours["service.name"] = told
        self._provider = TracerProvider(resource=Resource.create(ours), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("maestrale", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, scope: Scope, context: RequestContext) -> str:
        """Make the spans of a request that is over. Returns the trace's id."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        clock = _Clock()
        answer = context.answer
        route = str(getattr(scope.get("route"), "path", scope["path"]))
        name = f"{scope['method']} {route}"
        if answer is not None:
            name = f"{context.operation} {context.model}"
        span = self._tracer.start_span(
            name,
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=clock(context.started),
            attributes=dict(_attributes(scope, context, route)),
        )
        if context.status >= 500 or context.error or (answer is not None and answer.failure):
            span.set_status(Status(StatusCode.ERROR))
        if answer is not None:
            self._phases(answer, set_span_in_context(span), clock)
        span.end(clock.now)
        return _trace_id(span)

    def _phases(self, answer: Answer, parent: Context, clock: _Clock) -> None:
        timings = answer.timings
        queue, first = timings.queue, timings.first_token
        if queue is None or first is None:
            return
        admitted = timings.prepared + queue
        marks = [
            ("prepare", timings.started, timings.prepared),
            ("queue", timings.prepared, admitted),
            ("prefill", admitted, first),
        ]
        if timings.finished is not None:
            marks.append(("decode", first, timings.finished))
        for name, begin, end in marks:
            child = self._tracer.start_span(
                name,
                context=parent,
                start_time=clock(begin),
            )
            child.end(clock(end))

    def close(self) -> None:
        """Send what is left; takes seconds where the collector doesn't answer."""
        self._provider.force_flush(LAST_WORDS_MS)


class _Clock:
    """Seconds of the monotonic clock → nanoseconds since 1970."""

    def __init__(self) -> None:
        self.now = time.time_ns()
        self._monotonic = time.perf_counter()

    def __call__(self, monotonic: float) -> int:
        return self.now - round((self._monotonic - monotonic) * 1e9)


def _trace_id(span: Span) -> str:
    return f"{span.get_span_context().trace_id:032x}"


def _attributes(
    scope: Scope, context: RequestContext, route: str
) -> Iterator[tuple[str, AttributeValue]]:
    yield "http.request.method", scope["method"]
    yield "http.route", route
    yield "url.path", scope["path"]
    yield "http.response.status_code", context.status
    yield "maestrale.request.id", context.id
    yield "maestrale.key.name", context.key
    if scope.get("server"):
        yield "server.address", scope["server"][0]
        yield "server.port", scope["server"][1]
    fault = context.refused or context.error
    answer = context.answer
    if answer is not None and answer.failure is not None:
        fault = fault or type(answer.failure).__name__
    if fault:
        yield "error.type", fault
    if answer is None:
        return
    yield "gen_ai.operation.name", context.operation
    yield "gen_ai.provider.name", "maestrale"
    yield from _asked(answer, context.model)
    yield from _answered(answer, context)


def _asked(answer: Answer, model: str) -> Iterator[tuple[str, AttributeValue]]:
    options, sampling = answer.options, answer.options.sampling
    yield "gen_ai.request.model", model
    if answer.embeds:
        for raw in list(answer.embeddings.values())[:1]:
            yield "gen_ai.embeddings.dimension.count", len(raw) // 4
        return
    yield "gen_ai.request.choice.count", options.n
    yield "gen_ai.request.seed", answer.seed
    yield "gen_ai.request.temperature", sampling.temperature
    yield "gen_ai.request.top_p", sampling.top_p
    yield "gen_ai.request.frequency_penalty", sampling.frequency_penalty
    yield "gen_ai.request.presence_penalty", sampling.presence_penalty
    if sampling.top_k:
        yield "gen_ai.request.top_k", sampling.top_k
    if options.max_tokens is not None:
        yield "gen_ai.request.max_tokens", options.max_tokens
    json = options.constraint is not None and options.constraint.kind == "json_schema"
    yield "gen_ai.output.type", "json" if json else "text"


def _answered(answer: Answer, context: RequestContext) -> Iterator[tuple[str, AttributeValue]]:
    usage, timings = answer.usage, answer.timings
    yield "gen_ai.response.id", context.answer_id
    yield "gen_ai.response.model", context.model
    yield "gen_ai.response.finish_reasons", finish_reason(context).split(",")
    yield "gen_ai.usage.input_tokens", usage.prompt_tokens
    yield "gen_ai.usage.cache_read.input_tokens", usage.cached_tokens
    yield "gen_ai.usage.output_tokens", usage.completion_tokens
    if usage.reasoning_tokens:
        yield "gen_ai.usage.reasoning.output_tokens", usage.reasoning_tokens
    # Not in the conventions; the names are vLLM's.
    for name, seconds in (
        ("time_in_queue", timings.queue),
        ("time_to_first_token", timings.ttft),
        ("time_in_model_decode", timings.decode),
        ("e2e", None if timings.finished is None else timings.finished - timings.started),
    ):
        if seconds is not None:
            yield f"gen_ai.latency.{name}", seconds
