"""What is known of one HTTP request beside its body: id, key, dialect, outcome, its log line."""

from __future__ import annotations

import copy
import re
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Protocol, cast

from msgspec import structs
from starlette.types import Scope

from maestrale.api.accounts import Charge
from maestrale.api.deployment import Deployment
from maestrale.api.dialect import Dialect, Name
from maestrale.api.unknown_fields import IgnoredFields
from maestrale.chat.answer import Answer
from maestrale.chat.options import Options
from maestrale.engines.base import EngineInfo
from maestrale.errors import ApiError, Location, Sent
from maestrale.keys import Key
from maestrale.usage import NO_MODEL, UsageRow, beyond, day_of

SCOPE_KEY = "maestrale.request"
ALL = sys.maxsize
"""More tokens than any answer has."""
CLIENT_LEFT = 499  # nginx's status of a request whose client did not wait
_SANE_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}")


class Repeated(Protocol):
    """What has a request's answer made so that it can be made again (api/durable/run.py)."""

    def options(self, asked: Options) -> Options:
        """As asked for, with what was decided when it was begun."""

    def begin(self, answer: Answer, info: EngineInfo, *, stream: bool, keep: bool) -> None:
        """It is accepted; `keep`: its request may be kept. Raises: CannotResume."""

    def goes_on_at(self, path: str) -> None:
        """It is kept elsewhere, and read there (GET) by whoever asks for it again."""

    def refusal(self, error: ApiError) -> ApiError:
        """What its client is told of an error."""

    async def charge(self) -> int | None:
        """Its key is charged for what it has used: for how many tokens it was before."""


class RequestContext:
    """One HTTP request's id, key and outcome, for the answer's header and the log."""

    __slots__ = (
        *("answer", "answer_id", "charge", "counted", "counts", "day", "deployment", "dialect"),
        *("error", "id", "ignored", "keep", "key", "model", "name", "operation", "owner"),
        *("refused", "run", "settled", "started", "status", "texts"),
    )

    def __init__(self, request_id: str, dialect: Dialect) -> None:
        self.id = request_id
        self.dialect = dialect  # that of the path
        self.name: Name = dialect.names({})  # what this request's client calls locations
        self.key = "-"  # its owner's name
        self.ignored = IgnoredFields()  # of its body, where that is allowed
        self.keep = True  # what is kept of others of its kind may be kept of it
        self.owner: Key | None = None  # None: no key was asked for
        self.model = "-"
        self.operation = ""  # the kind of answer, for traces
        self.status = 0  # HTTP status; 499 when the client left before the end
        self.error = ""
        self.refused = ""  # the code of the ApiError it was answered with
        self.charge: Charge | None = None  # what it holds of its key's limits, where there are any
        self.counts = 0  # as so many requests in what is told of usage
        self.counted: int | None = None  # tokens of its answer that were, as another request's
        self.settled = True  # nothing of it is to be counted, or it was
        self.day = day_of(time.time())  # that its usage belongs to
        self.answer: Answer | None = None
        self.answer_id = ""  # as the dialect spells it
        self.deployment: Deployment | None = None  # that answers
        self.run: Repeated | None = None  # None: it is made for one connection, and once
        self.texts: list[list[str]] = []  # of each choice, where the log is to show them
        self.started = time.perf_counter()

    @property
    def owner_id(self) -> str:
        """Whose what is kept of it is: its key's; without keys, everybody's."""
        return "-" if self.owner is None else self.owner.identity

    def moved(self) -> RequestContext:
        """In its place, for work that may outlast it: what it may use is that one's from now on,
        which is settled in its stead.
        """
        other = copy.copy(self)
        self.settled = True
        return other

    def read_from(self, made: RequestContext) -> None:
        """What is told of this request is told of the answer that `made` is for."""
        for name in ("answer", "answer_id", "deployment", "dialect", "model", "name", "operation"):
            setattr(self, name, getattr(made, name))
        self.refused = made.refused or self.refused
        self.texts = made.texts
        if self.settled:
            self.charge = made.charge

    def rename(self, renamed: Mapping[Location, Sent]) -> None:
        """From now on errors call these locations as the client did."""
        if renamed:
            self.name = self.dialect.names(renamed)


def new_context(scope: Scope, dialect: Dialect) -> RequestContext:
    """Make the context and put it into the scope; a client's own sane x-request-id is kept."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    sane = _SANE_ID.fullmatch(given)
    request_id = given.decode() if sane else f"req-{secrets.token_hex(12)}"
    context = RequestContext(request_id, dialect)
    context.keep = not _says_no_store(scope)
    scope[SCOPE_KEY] = context
    return context


def _says_no_store(scope: Scope) -> bool:
    """Whether it was sent with `Cache-Control: no-store` (RFC 9111): nobody may store any part of
    it, or of its answer.
    """
    directives = (
        directive.strip().lower()
        for name, value in scope["headers"]
        if name == b"cache-control"
        for directive in value.split(b",")
    )
    return b"no-store" in directives


def context_of(scope: Scope) -> RequestContext:
    """The context that `new_context` put there."""
    return cast(RequestContext, scope[SCOPE_KEY])


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
        if answer.usage.reasoning_tokens:
            fields["reasoning_tokens"] = answer.usage.reasoning_tokens
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


def usage_of(context: RequestContext) -> UsageRow:
    """What a request that ends now has used; tokens count once the engine was asked for them."""
    answer, deployment = context.answer, context.deployment
    failed = context.refused or context.error or (answer is not None and answer.failure is not None)
    left = context.status == CLIENT_LEFT
    row = UsageRow(
        day=context.day,
        key=context.key,
        model=NO_MODEL if deployment is None else deployment.name,
        requests=context.counts,
        errors=int(bool(failed) and not left),
    )
    if answer is not None and answer.timings.granted is not None:
        usage = answer.usage
        row = structs.replace(
            row,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=min(usage.cached_tokens, usage.prompt_tokens),
            completion_tokens=usage.completion_tokens,
            seconds=answer.timings.computed,
        )
    return row if context.counted is None else beyond(row, context.counted)
