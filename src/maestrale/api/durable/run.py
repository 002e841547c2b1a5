"""One answer in the making, apart from the connections that read it.

It goes through the same route as any other; what the route sends is held here, as numbered events
where it is a stream. Readers come and go, each from where it was. When the last one has left, the
answer goes on for a while, in case that its client lost the connection and comes again.

The seed, the id and the time of an answer are decided once. Made again with these, after a restart
or in another process, its events are the same, byte for byte.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Self

from msgspec import structs
from starlette.types import Message, Scope

from maestrale.api.context import ALL, SCOPE_KEY, RequestContext
from maestrale.api.durable.facts import INSTEAD, cannot_resume, check_same, facts_of
from maestrale.chat.answer import Answer
from maestrale.chat.options import Options
from maestrale.durable.database import CannotKeep
from maestrale.durable.ledger import Entry, Ledger, Output, entry_id
from maestrale.engines.base import EngineInfo
from maestrale.errors import ApiError, MaestraleError

STREAM_HEADER = b"x-stream-id"
SEE_OTHER = 303  # kept in place of an answer: where it is
REFUSED = frozenset({400, 404, 413, 415})
"""Of a request that is at fault itself."""
Headers = list[tuple[bytes, bytes]]


class KeyTaken(MaestraleError):
    """Another process was asked the same at the same moment, with this Idempotency-Key: its answer
    is the one.
    """


class Run:
    """An answer, and what of it can be sent. `parts`: its events, or its body."""

    def __init__(
        self,
        ledger: Ledger,
        entry: Entry,
        context: RequestContext,
        *,
        streams: bool,
    ) -> None:
        """`entry`: what is known of the request before it is read; with the facts of an answer
        that was begun before it becomes the same one. `streams`: a stream is to be kept.
        """
        self.entry = entry
        self.context = context
        self.recorded = bool(entry.facts.answer)
        """It is in the ledger, or will be before its first byte is sent."""
        self.status = 0  # until its head is there
        self.headers: Headers = []
        self.is_stream = False
        """What it sends is events; known with its head."""
        self.parts: list[bytes] = []
        self.readers = 0
        self.ended = False
        self.complete = False
        """It came to a good end."""
        self.error: BaseException | None = None
        self._ledger = ledger
        self._streams = streams
        self._adding: asyncio.Task[bool] | None = None
        self._begun_before = self.recorded
        self._left = asyncio.Event()
        self._waiting: set[asyncio.Future[None]] = set()
        self._body: bytes | None = entry.body
        self._refused: MaestraleError | None = None
        self._elsewhere = False

    @classmethod
    def kept(cls, ledger: Ledger, entry: Entry, output: Output, context: RequestContext) -> Self:
        """One that is whole, as the ledger has it."""
        run = cls(ledger, entry, context, streams=False)
        run.status, run.headers, run.parts = output.status, output.headers, output.parts
        run.is_stream = _are_events(output.headers)
        run.ended = run.complete = True
        return run

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return sum(map(len, self.parts)) + len(self.entry.body)

    def mark(self, *, now: bool = False) -> None:
        """Let the ledger know how far it is, soon or `now`, and so that it is still made."""
        if self.recorded:
            sent = len(self.parts) if self.is_stream else 0
            self._ledger.mark(self.entry.id, sent, self._cached, now=now)

    def stop(self) -> None:
        """Nobody wants it any more."""
        self._left.set()

    async def news(self) -> None:
        """Wait until there is more of it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:  # it may have been given up
            self._waiting.discard(future)

    async def make(self, scope: Scope, route: Callable[[Scope, Run], Awaitable[None]]) -> None:
        """Run it to its end."""
        self.context.run = self
        scope = {**scope, SCOPE_KEY: self.context}
        try:
            await route(scope, self)
        except BaseException as error:
            self.error = error
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            await self._end()

    # What the route is told, and tells

    async def receive(self) -> Message:
        """The body, and then the end of the connection when nobody wants the answer any more."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    def options(self, asked: Options) -> Options:
        """As asked for, with the seed of the answer that was begun."""
        facts = self.entry.facts
        return structs.replace(asked, seed=facts.seed) if facts.answer else asked

    def begin(self, answer: Answer, info: EngineInfo, *, stream: bool, keep: bool) -> None:
        """All of the request is checked: it is accepted. With `keep` False the ledger knows of it
        by its Idempotency-Key alone, and nothing of what is asked or answered.

        Raises: CannotResume.
        """
        facts = facts_of(answer, info)
        begun = self.entry.facts
        if begun.answer:
            check_same(begun, facts, info, self._instead)
            answer.repeatable(begun.answer, begun.created, self.entry.cached)
        elif self.entry.key is not None or (stream and keep and self._streams):
            self.recorded = True
            answer.repeatable(answer.id, answer.created)
            body = self.entry.body if keep else b""
            self.entry = structs.replace(self.entry, id=entry_id(answer.id), facts=facts, body=body)
            self._adding = asyncio.create_task(self._ledger.add(self.entry))

    def goes_on_at(self, path: str) -> None:
        """See `Repeated`: known by its Idempotency-Key before its first byte is sent."""
        if self.entry.key is not None:
            self._elsewhere = True
            output = Output(SEE_OTHER, [(b"location", path.encode())], [])
            self._adding = asyncio.create_task(self._ledger.add(self._as_it_is(output)))

    def refusal(self, error: ApiError) -> ApiError:
        """What is told of an error; one that was begun was accepted once, and so the server has
        changed: its model is gone, or what it takes is less.
        """
        if not self._begun_before or error.status not in REFUSED:
            return error
        return cannot_resume(
            f"its request is refused by now. {error.told(self.context.name)}", self._instead
        )

    @property
    def _instead(self) -> str:
        another = "" if self.entry.key is None else ", with another Idempotency-Key"
        return f"{INSTEAD.rstrip('.')}{another}."

    async def charge(self) -> int | None:
        """For how many of its tokens its key was charged before, here or in another process; None:
        not even for its prompt.
        """
        answer, before = self.context.answer, self.context.counted
        if not self.recorded or before == ALL:
            return before
        if answer is None or answer.timings.granted is None:  # it never had its turn
            return ALL if self._begun_before else before
        try:
            if self._adding is not None and not await asyncio.shield(self._adding):
                return ALL  # as the other's
            return await self._ledger.charge(self.entry.id, answer.usage.completion_tokens)
        except CannotKeep:
            return before

    async def send(self, message: Message) -> None:
        """Take what goes out.

        Raises: CannotKeep where an Idempotency-Key can't be kept, KeyTaken.
        """
        if self._refused is not None:
            raise self._refused
        if message["type"] == "http.response.start":
            await self._begin(message["status"], list(message["headers"]))
        elif self.is_stream:
            self._take_events(message.get("body", b""))
        else:
            self.parts.append(message.get("body", b""))
        self._tell()

    async def _begin(self, status: int, headers: Headers) -> None:
        await self._added()
        self.headers, self.status = headers, status
        self.is_stream = _are_events(headers)
        if self.is_stream and self.recorded:
            self.headers.append((STREAM_HEADER, self.entry.id.encode()))

    async def _added(self) -> None:
        """Wait till the request is in the ledger. Raises: CannotKeep, KeyTaken."""
        if self._adding is None:
            return
        adding, self._adding = self._adding, None
        try:
            if not await adding:
                self.context.counted = ALL  # as the other's
                raise KeyTaken("This Idempotency-Key is another request's.")
        except (CannotKeep, KeyTaken) as error:
            self.recorded = False
            if self.entry.key is not None:
                self._refused = error
                raise
            if isinstance(error, CannotKeep):
                self._ledger.database.warn(error)

    def _take_events(self, sent: bytes) -> None:
        """Comments, which keep connections alive, are each connection's own. What tells of a
        failure has no number: whoever comes again gets what would have been in its place.
        """
        first, answer = not self.parts, self.context.answer
        numbered = self.recorded and (answer is None or answer.failure is None)
        for event in sent.split(b"\n\n"):
            if event and not event.startswith(b":"):
                number = b"id: %d\n" % len(self.parts) if numbered else b""
                self.parts.append(b"%b%b\n\n" % (number, event))
        if numbered and self.parts:
            self.mark(now=first)

    @property
    def _cached(self) -> int | None:
        answer = self.context.answer
        return None if answer is None else answer.usage.cached_tokens

    async def _end(self) -> None:
        answer = self.context.answer
        failed = answer is not None and (answer.failure is not None or answer.aborted)
        self.complete = self.error is None and 200 <= self.status < 400 and not failed
        try:
            await self._keep_end()
        except CannotKeep as error:
            self._ledger.database.warn(error)
        except KeyTaken:
            pass
        finally:
            self.ended = True
            self._tell()

    async def _keep_end(self) -> None:
        """The last words to the ledger. Raises: CannotKeep, KeyTaken."""
        await self._added()  # where it never came to a first byte
        entry, output = self.entry, None
        if entry.key is not None:
            output = Output(self.status, self.headers, self.parts)
        if self.complete and self.recorded:
            await self._ledger.end(entry.id, len(self.parts), self._cached, output)
        elif self._elsewhere:
            return
        elif self.complete and entry.key is not None and not entry.facts.answer:
            # No answer of the model's: it can't be made again, so it is kept as it is, if it may.
            await self._ledger.add(self._as_it_is(output if self.context.keep else None))
        elif self.recorded and not (self.parts or self._begun_before):
            await self._ledger.forget(entry.id, entry.owner)

    def _as_it_is(self, output: Output | None) -> Entry:
        kept = f"kept-{secrets.token_hex(12)}"
        return structs.replace(self.entry, id=kept, body=b"", ended=True, output=output)

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for each in waiting:
            if not each.done():
                each.set_result(None)


def _are_events(headers: Headers) -> bool:
    return dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
