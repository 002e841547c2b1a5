"""What the requests of an API worker had used when it died: its parent counts them in its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from msgspec import structs

from maestrale.engines.base import GenerationRequest, TokenDelta
from maestrale.usage import UsageRow, day_of


class Work:
    """One sequence that runs for a worker, and what was sent of it."""

    __slots__ = ("begun", "cached", "day", "model", "request", "tokens")

    def __init__(self, model: str, request: GenerationRequest) -> None:
        self.model = model
        self.request = request
        self.begun = time.perf_counter()
        self.day = day_of(time.time())
        self.cached = self.tokens = 0

    def take(self, delta: TokenDelta) -> None:
        """More of it is sent."""
        if not self.tokens:
            self.cached = delta.cached_tokens
        self.tokens += len(delta.token_ids)


def usage_of_cut(works: Iterable[Work], name: Callable[[str], str]) -> dict[str, UsageRow]:
    """What each request had used that the sequences are of, by its answer's id; one error for each.

    `name`: what the model of a deployment's id is called.
    """
    rows: dict[str, UsageRow] = {}
    prompts: set[tuple[str, tuple[int, ...]]] = set()
    for work in works:
        # As chat/service.py names them: the answer, and the number of the choice. One that was
        # begun before has the first one's id, a dot, and its own (chat/answer.py).
        answer = work.request.request_id.rpartition("-")[0]
        row = rows.get(answer)
        if row is None:
            row = UsageRow(
                day=work.day,
                key=work.request.share,
                model=name(work.model),
                requests=1,
                errors=1,
            )
        prompt = (answer, work.request.prompt)
        if prompt not in prompts:  # the choices of one prompt share it
            prompts.add(prompt)
            size = len(work.request.prompt)
            row = structs.replace(
                row,
                prompt_tokens=row.prompt_tokens + size,
                cached_tokens=row.cached_tokens + min(work.cached, size),
            )
        rows[answer] = structs.replace(
            row,
            completion_tokens=row.completion_tokens + work.tokens,
            seconds=max(row.seconds, time.perf_counter() - work.begun),
        )
    return rows
