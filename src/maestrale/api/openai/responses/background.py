"""Responses that are made while nobody waits: each a task that writes into the store how far it is.

A run goes through the same answer as a request that is waited for; what it would have sent is kept
as events, where its client asked for a stream. Whichever process is asked for it reads the store,
and begins it again where the one that worked on it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging

import msgspec
from msgspec import Struct, structs
from starlette.types import Message, Scope

from maestrale.api.answering import AnswerResponse
from maestrale.api.backend import Backend
from maestrale.api.context import CLIENT_LEFT, SCOPE_KEY, context_of
from maestrale.api.durable.facts import check_same, facts_of
from maestrale.api.errors import as_api_error, error_body
from maestrale.api.http.connections import ClientDisconnected
from maestrale.api.openai.responses.items import Item
from maestrale.api.openai.responses.spelling import ResponseSpelling
from maestrale.api.openai.responses.store import WORKING, KeptItem, ResponseStore
from maestrale.api.request_log import tell
from maestrale.chat.answer import Answer
from maestrale.chat.options import Options
from maestrale.durable.database import CannotKeep
from maestrale.durable.ledger import Facts
from maestrale.engines.base import EngineInfo
from maestrale.errors import ApiError, ServerFailure
from maestrale.logs import LOGGER

BEAT_SECONDS = 1.0  # at most between two looks whether to go on
FLUSH_SECONDS = 0.05  # at least between two writes


def kept_items(items: tuple[Item, ...], *, given: bool = True) -> list[KeptItem]:
    """Items of an input as they are kept."""
    return [KeptItem(item.shown["id"], msgspec.json.encode(item.shown), given) for item in items]


def output_items(spelling: ResponseSpelling) -> list[KeptItem]:
    """The items of an answer as they are kept."""
    return [KeptItem(item["id"], msgspec.json.encode(item), False) for item in spelling.output]


class Begun(Struct, frozen=True, kw_only=True):
    """What it takes to begin a response again. `counted`: tokens that its key was charged for."""

    path: str
    body: bytes
    facts: Facts = Facts()
    counted: int | None = None


class Repeatable:
    """Has a response made so that it can be begun again, or begins it again (api/context.py)."""

    def __init__(self, begun: Begun, *, same: bool = True) -> None:
        """`same`: something of it may have been read, so it has to come out the same."""
        self.begun = begun
        self._same = same

    def options(self, asked: Options) -> Options:
        """See `Repeated`."""
        facts = self.begun.facts
        return structs.replace(asked, seed=facts.seed) if facts.answer else asked

    def begin(self, answer: Answer, info: EngineInfo, *, stream: bool, keep: bool) -> None:
        """See `Repeated`. Raises: CannotResume."""
        facts = facts_of(answer, info)
        if not self.begun.facts.answer:
            self.begun = structs.replace(self.begun, facts=facts)
        elif self._same:
            check_same(self.begun.facts, facts, info)
        answer.repeatable(self.begun.facts.answer, self.begun.facts.created)

    def goes_on_at(self, path: str) -> None:
        """See `Repeated`: it is kept here."""

    def refusal(self, error: ApiError) -> ApiError:
        """See `Repeated`."""
        return error

    async def charge(self) -> int | None:
        """See `Repeated`."""
        return self.begun.counted

    def stopped(self, answer: Answer | None) -> bytes:
        """As the store is to have it when it stops before its end."""
        begun = self.begun
        if answer is not None and answer.timings.granted is not None:
            counted = max(begun.counted or 0, answer.usage.completion_tokens)
            begun = structs.replace(begun, counted=counted)
        return msgspec.msgpack.encode(begun)


class Run:
    """One response in the making. `news` is set when more of it is in the store."""

    def __init__(
        self,
        backend: Backend,
        store: ResponseStore,
        answer: AnswerResponse,
        spelling: ResponseSpelling,
        repeatable: Repeatable,
        scope: Scope,
        *,
        streams: bool,
    ) -> None:
        self.news = asyncio.Event()
        self._backend = backend
        self._store = store
        self._answer = answer
        self._spelling = spelling
        self._repeatable = repeatable
        self._streams = streams
        # The request that it comes of has an end, and a line in the log, of its own.
        self._context = copy.copy(context_of(scope))
        self._context.counts, self._context.charge, self._context.settled = 0, None, False
        self._scope = {**scope, SCOPE_KEY: self._context}
        self._left = asyncio.Event()  # the client wants no more
        self._fresh = asyncio.Event()
        self._events: list[tuple[int, bytes]] = []
        self._count = 0

    async def begin(self, owner: str, previous: str | None, items: tuple[Item, ...]) -> None:
        """Enter it into the store. Raises: CannotKeep, RateLimited."""
        await self._answer.reserve(self._context)
        self._note(self._spelling.queued())
        try:
            await self._store.add(
                id=self._spelling.id,
                owner=owner,
                previous=previous,
                status=self._spelling.status,
                body=self._body(),
                items=kept_items(items),
                streams=self._streams,
                request=msgspec.msgpack.encode(self._repeatable.begun),
            )
            await self._flush()
        except BaseException:  # it will not run, so nothing else gives back what it reserved
            await self._backend.settle(self._context)
            raise

    async def begin_again(self) -> None:
        """It is in the store already, with events that are the same. Raises: RateLimited."""
        await self._answer.reserve(self._context)
        self._note(self._spelling.queued())

    def cancel(self) -> None:
        """Stop, soon."""
        self._left.set()

    async def run(self) -> None:
        """Make the response, and keep what comes of it."""
        beats = asyncio.create_task(self._beat())
        stopped = False
        try:
            await self._answer(self._scope, self._receive, self._send)
            self._context.status = 200
        except ClientDisconnected:
            self._context.status = CLIENT_LEFT
            self._note(self._spelling.cancelled())
        except asyncio.CancelledError:  # the server ends: another goes on
            stopped = True
            raise
        except Exception as error:
            told = as_api_error(error)
            self._context.status, self._context.refused = told.status, told.code
            if isinstance(told, ServerFailure):
                LOGGER.exception("The response %s failed", self._spelling.id)
            self._note(self._failure(error))
        finally:
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)
            ended = self._spelling.status not in WORKING
            await (self._stop() if stopped and not ended else self._end())
            tell(self._backend, self._scope, self._context, logging.INFO)

    def _failure(self, error: Exception) -> bytes:
        return self._spelling.failure(error_body(as_api_error(error), self._context))

    async def _receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._note(message.get("body", b""))

    def _note(self, sent: bytes) -> None:
        """Events that go out; comments, which keep connections alive, are none."""
        for event in sent.split(b"\n\n"):
            if event and not event.startswith(b":"):
                self._events.append((self._count, event + b"\n\n"))
                self._count += 1
                self._fresh.set()

    async def _beat(self) -> None:
        """Write what is new, and stop the run when it is cancelled or deleted elsewhere."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._fresh.wait()
            try:
                if not await self._flush():
                    self.cancel()
            except CannotKeep as error:
                self._store.warn(error)
            await asyncio.sleep(FLUSH_SECONDS)

    async def _flush(self) -> bool:
        """Whether to go on. Raises: CannotKeep; nothing is lost then."""
        self._fresh.clear()
        if self._spelling.status not in WORKING:  # the last words have all of it
            return True
        events, self._events = self._events, []
        try:
            kept = events if self._streams else []
            return await self._store.update(
                self._spelling.id, self._spelling.status, self._body(), events=kept
            )
        except BaseException:
            self._events = [*events, *self._events]
            raise
        finally:
            self._told()

    async def _stop(self) -> None:
        """It goes on elsewhere."""
        try:
            await self._flush()
            request = self._repeatable.stopped(self._context.answer)
            await self._store.release(self._spelling.id, request)
        except CannotKeep as error:
            self._store.warn(error)

    async def _end(self) -> None:
        """The last words."""
        events = self._events if self._streams else []
        items = output_items(self._spelling)
        spelling = self._spelling
        try:
            await self._store.update(
                spelling.id, spelling.status, self._body(), events=events, items=items
            )
        except CannotKeep as error:
            self._store.warn(error)
        self._told()

    def _told(self) -> None:
        """Wake those who wait for more."""
        self.news.set()
        self.news = asyncio.Event()

    def _body(self) -> bytes:
        return msgspec.json.encode(self._spelling.response())


class Runs:
    """The responses that this process makes in the background, by id."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, id: str, run: Run) -> None:
        """Let it go on by itself."""
        self._runs[id] = run
        task = asyncio.create_task(run.run())
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._runs.pop(id, None)

        task.add_done_callback(done)

    def cancel(self, id: str) -> None:
        """Stop one, if it runs here; another process learns it from the store."""
        if id in self._runs:
            self._runs[id].cancel()

    async def news(self, id: str, seconds: float) -> None:
        """Wait until more may be in the store, at most so long."""
        run = self._runs.get(id)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await (run.news.wait() if run is not None else asyncio.sleep(seconds))
