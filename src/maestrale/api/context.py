"""What is known of one HTTP request beside its body: its id, whose key, what to log."""

from __future__ import annotations

import re
import secrets
import time
from typing import cast

from starlette.types import Scope

from maestrale.chat.answer import Answer
from maestrale.keys import Key

SCOPE_KEY = "maestrale.request"
_SANE_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}")


class RequestContext:
    """One HTTP request's id, key and outcome, for the answer's header and the log."""

    __slots__ = (
        *("answer", "error", "id", "key", "model", "owner", "refused", "reserved", "started"),
        *("status", "texts"),
    )

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        self.key = "-"  # its owner's name
        self.owner: Key | None = None  # None: no key was asked for
        self.model = "-"
        self.status = 0  # HTTP status; 499 when the client left before the end
        self.error = ""
        self.refused = ""  # the code of the ApiError it was answered with
        self.reserved: int | None = None  # tokens of its key's limit, where there is one
        self.answer: Answer | None = None
        self.texts: list[list[str]] = []  # of each choice, where the log is to show them
        self.started = time.perf_counter()


def new_context(scope: Scope) -> RequestContext:
    """Make the context and put it into the scope; a client's own sane x-request-id is kept."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    sane = _SANE_ID.fullmatch(given)
    context = RequestContext(given.decode() if sane else f"req-{secrets.token_hex(12)}")
    scope[SCOPE_KEY] = context
    return context


def context_of(scope: Scope) -> RequestContext:
    """The context that `new_context` put there."""
    return cast(RequestContext, scope[SCOPE_KEY])
