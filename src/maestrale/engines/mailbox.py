"""Deltas of one request on their way to one reader.

A reader that falls behind gets what has gathered in one piece, so a slow reader costs no more
memory than its own tokens and never holds anybody up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from maestrale.engines.base import TokenDelta


class Mailbox:
    """One producer and one reader, both on the same event loop. Iterated over, it ends with the
    request's last delta, or raises what was given to `fail`.
    """

    def __init__(self) -> None:
        self.over = False  # the last delta, or the error, was read
        self._deltas: list[TokenDelta] = []
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def put(self, delta: TokenDelta) -> None:
        self._deltas.append(delta)
        self._wake()

    def fail(self, error: Exception) -> None:
        """The reader gets `error` after what is already here."""
        self._error = error
        self._wake()

    async def get(self) -> TokenDelta:
        """All that has come since the last call, as one delta; waits for something to come.

        Raises: what was given to `fail`, once everything before it is read.
        """
        while not self._deltas:
            if self._error is not None:
                self.over = True
                raise self._error
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        deltas, self._deltas = self._deltas, []
        delta = deltas[0] if len(deltas) == 1 else merge(deltas)
        self.over = delta.finish_reason is not None
        return delta

    def __aiter__(self) -> Mailbox:
        return self

    async def __anext__(self) -> TokenDelta:
        if self.over:
            raise StopAsyncIteration
        return await self.get()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def merge(deltas: Sequence[TokenDelta]) -> TokenDelta:
    """Several deltas of one request, in order, as one."""
    scored = [delta.logprobs for delta in deltas if delta.logprobs is not None]
    of_prompt = (delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None)
    embeddings = (delta.embedding for delta in deltas if delta.embedding is not None)
    return TokenDelta(
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        finish_reason=deltas[-1].finish_reason,
        logprobs=tuple(entry for entries in scored for entry in entries) if scored else None,
        cached_tokens=max(delta.cached_tokens for delta in deltas),
        waited=max(delta.waited for delta in deltas),
        prompt_logprobs=next(of_prompt, None),
        prefilled=max(delta.prefilled for delta in deltas),
        embedding=next(embeddings, None),
    )
