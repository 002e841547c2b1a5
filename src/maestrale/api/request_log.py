"""What is told of a request at its end: a line of the log, a trace."""

from __future__ import annotations

import logging

from starlette.types import Scope

from maestrale.api.backend import Backend
from maestrale.api.context import RequestContext, request_fields
from maestrale.logs import FIELDS, REQUESTS


def tell(backend: Backend, scope: Scope, context: RequestContext, level: int) -> None:
    """Tell of a request that ended, or of an answer that went on without one."""
    trace = ""
    if backend.tracer is not None and level == logging.INFO:
        trace = backend.tracer.record(scope, context)
    if not REQUESTS.isEnabledFor(level):
        return
    fields = request_fields(context)
    if trace:
        fields["trace"] = trace
    answer, deployment = context.answer, context.deployment
    if answer is not None and backend.settings.log_prompts:
        fields["prompt"] = deployment.spell_prompts(answer) if deployment is not None else ""
        fields["answer"] = " | ".join(map("".join, context.texts))
    REQUESTS.log(level, "%s", f"{scope['method']} {scope['path']}", extra={FIELDS: fields})
