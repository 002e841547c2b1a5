"""What is kept of responses, as their routes ask for it: conversations, a response, its events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from maestrale.api.answering import AnswerResponse, Serving, prepare
from maestrale.api.backend import Backend
from maestrale.api.context import SCOPE_KEY, RequestContext, context_of
from maestrale.api.dialect import AnswerRequest
from maestrale.api.errors import as_api_error
from maestrale.api.http.connections import ClientDisconnected
from maestrale.api.openai.responses.background import (
    Begun,
    Repeatable,
    Run,
    Runs,
    kept_items,
    output_items,
)
from maestrale.api.openai.responses.fitting import fitted
from maestrale.api.openai.responses.items import Item, read_input, read_kept, references
from maestrale.api.openai.responses.reading import read_response
from maestrale.api.openai.responses.schemas import ResponsesRequest
from maestrale.api.openai.responses.spelling import ResponseSpelling
from maestrale.api.openai.responses.store import WORKING, Kept, KeptItem, ResponseStore
from maestrale.api.sse import EventStream, Headers, while_connected
from maestrale.durable.database import CannotKeep
from maestrale.errors import (
    InvalidRequest,
    MaestraleError,
    NotFound,
    RateLimited,
    Sent,
    Unavailable,
    UnsupportedParameter,
    quoted,
)

POLL_SECONDS = 0.25  # between two looks for what another process writes
CANCEL_SECONDS = 10.0  # that a cancelled response has to end
EVENTS_AT_ONCE = 256
PREVIOUS = Sent("previous_response_id")
LOST = {
    "code": "server_error",
    "message": "The server ended while it worked on this response. Ask again.",
}
Body = dict[str, Any]


class Keeping:
    """The kept responses, and those that are made in the background."""

    def __init__(self, backend: Backend) -> None:
        settings = backend.settings
        self._backend = backend
        self._store = ResponseStore(
            settings.store_path, days=settings.store_days, most_bytes=settings.store_size
        )
        self._runs = Runs()

    def keeps(self, body: ResponsesRequest, context: RequestContext) -> bool:
        """Whether the response to this body is to be kept. Raises: InvalidRequest."""
        if body.background and not self._store.enabled:
            raise UnsupportedParameter(
                "'background' is not supported: this server keeps no responses (--no-store).",
                at=Sent("background"),
            )
        if body.background and not context.keep:
            raise InvalidRequest(
                "'background' can't go with the header Cache-Control: no-store: a response that "
                "nobody waits for must be kept.",
                at=Sent("background"),
            )
        return body.store is not False and context.keep and self._store.enabled

    async def items(self, body: ResponsesRequest, owner: str) -> tuple[list[Item], list[Item]]:
        """The items before those of a body, and its own.

        Raises: InvalidRequest where one that it names is not there.
        """
        before: list[Item] = []
        if body.previous_response_id is not None:
            before = list(await self._conversation(body.previous_response_id, owner))
        wanted = references(body.input)
        kept = await self._store.items(wanted, owner) if self._store.enabled else {}
        return before, list(read_input(body.input, kept))

    async def _conversation(self, id: str, owner: str) -> tuple[Item, ...]:
        if not self._store.enabled:
            raise UnsupportedParameter(
                "'previous_response_id' is not supported: this server keeps no responses "
                "(--no-store). Send the items.",
                at=PREVIOUS,
            )
        kept = await self._store.get(id, owner)
        found = await self._store.conversation(id, owner, with_output=True) if kept else None
        if kept is None or found is None:
            lost = "" if kept is None else ", or one before it,"
            raise InvalidRequest(
                f"There is no response {quoted(id)!r}{lost} here: it was not kept, was deleted, is "
                "too old, or is another key's. Send the items.",
                at=PREVIOUS,
                code="previous_response_not_found",
            )
        if kept.status in WORKING and kept.alive:
            raise InvalidRequest(
                f"The response {quoted(id)!r} is not at its end.",
                at=PREVIOUS,
                code="previous_response_not_ready",
            )
        return read_kept([item.body for item in found], PREVIOUS)

    def keep_at_end(
        self, answer: AnswerResponse, body: ResponsesRequest, items: list[Item], owner: str
    ) -> None:
        """Keep the response when it is whole, before its client reads that it is."""
        spelling = cast(ResponseSpelling, answer.spelling)

        async def keep() -> None:
            try:
                await self._store.add(
                    id=spelling.id,
                    owner=owner,
                    previous=body.previous_response_id,
                    status=spelling.status,
                    body=msgspec.json.encode(spelling.response()),
                    items=[*kept_items(tuple(items)), *output_items(spelling)],
                )
            except CannotKeep as error:
                self._store.warn(error)
                spelling.not_kept()

        answer.keep = keep

    async def answer(
        self, request: Request, body: ResponsesRequest
    ) -> tuple[AnswerResponse, list[Item]]:
        """The answer to a body, of which nothing runs yet, and the items that the body brings.

        Raises: InvalidRequest and its kin.
        """
        context = context_of(request.scope)
        store = self.keeps(body, context)
        before, given = await self.items(body, context.owner_id)
        items: Sequence[Item] = [*before, *given]
        if body.truncation == "auto":
            items = await fitted(self._backend, context, body, items)

        def read(serving: Serving) -> AnswerRequest:
            return read_response(body, items, store=store, serving=serving)

        return await prepare(self._backend, request, body.model, read), given

    async def run(self, request: Request, body: ResponsesRequest) -> tuple[Body, Headers]:
        """Begin a response that goes on by itself: it is queued. Raises: CannotKeep."""
        context = context_of(request.scope)
        # Its events are kept by themselves, under its own id.
        begun = Begun(path=request.scope["path"], body=msgspec.json.encode(body))
        once, context.run = context.run, (repeatable := Repeatable(begun))
        answer, given = await self.answer(request, body)
        run = self._run(answer, repeatable, request.scope, body)
        await run.begin(context.owner_id, body.previous_response_id, tuple(given))
        queued = cast(ResponseSpelling, answer.spelling).response()
        if once is not None and body.stream:
            once.goes_on_at(f"/v1/responses/{queued['id']}?stream=true")
        self._runs.start(queued["id"], run)
        return queued, answer.headers

    def _run(
        self,
        answer: AnswerResponse,
        repeatable: Repeatable,
        scope: Scope,
        body: ResponsesRequest,
    ) -> Run:
        spelling, streams = cast(ResponseSpelling, answer.spelling), bool(body.stream)
        return Run(
            *(self._backend, self._store, answer, spelling, repeatable, scope), streams=streams
        )

    async def current(self, request: Request, id: str) -> Kept:
        """One that is kept; where the process that worked on it has ended, this one goes on.

        Raises: NotFound, and what may pass: Unavailable, RateLimited.
        """
        owner = context_of(request.scope).owner_id
        kept = await self._get(id, owner)
        if kept.alive:
            return kept
        failed = await self._go_on(request, kept, owner)
        kept = await self._get(id, owner)
        return kept if kept.alive else await self._ended(kept, "failed", failed or LOST)

    async def _go_on(self, request: Request, kept: Kept, owner: str) -> Body | None:
        """Begin it again, if nobody has. The error, where that can't be."""
        claimed = await self._store.claim(kept.id, owner)
        if claimed is None:
            return None
        begun = msgspec.msgpack.decode(claimed, type=Begun)
        context = context_of(request.scope)
        own = RequestContext(context.id, context.dialect)
        own.owner, own.key, own.counted = context.owner, context.key, begun.counted
        own.run = repeatable = Repeatable(begun, same=kept.streams)
        scope = {**request.scope, "method": "POST", "path": begun.path, SCOPE_KEY: own}
        body = msgspec.json.decode(begun.body, type=ResponsesRequest)
        try:
            await self._backend.check_ready()
            answer, _ = await self.answer(Request(scope, _nothing), body)
            run = self._run(answer, repeatable, scope, body)
            await run.begin_again()
        except (Unavailable, RateLimited):
            await self._store.release(kept.id)
            raise
        except MaestraleError as error:
            await self._store.release(kept.id)
            told = as_api_error(error)
            return {"code": "server_error", "message": told.told(own.name)}
        self._runs.start(kept.id, run)
        return None

    async def _get(self, id: str, owner: str) -> Kept:
        """Raises: NotFound."""
        kept = await self._store.get(id, owner) if self._store.enabled else None
        if kept is None:
            raise not_found(id)
        return kept

    async def _ended(self, kept: Kept, status: str, error: Mapping[str, Any] | None) -> Kept:
        """What nobody works on any more has this end."""
        body = msgspec.json.decode(kept.body)
        told = msgspec.json.encode({**body, "status": status, "error": error})
        await self._store.update(kept.id, status, told)
        return Kept(id=kept.id, status=status, body=told, streams=kept.streams, alive=True)

    async def delete(self, id: str, owner: str) -> None:
        """Let one go, with its items; one that is made stops. Raises: NotFound."""
        if not (self._store.enabled and await self._store.delete(id, owner)):
            raise not_found(id)
        self._runs.cancel(id)

    async def cancel(self, id: str, owner: str) -> Kept:
        """Stop one that is made in the background; at its end it stays. Raises: InvalidRequest."""
        kept = await self._get(id, owner)
        if not msgspec.json.decode(kept.body)["background"]:
            raise InvalidRequest(
                "Only a response that was made with 'background': true can be cancelled.",
                at=Sent("response_id"),
            )
        if kept.status not in WORKING:
            return kept
        if not kept.alive:
            return await self._ended(kept, "cancelled", None)
        await self._store.cancel(id, owner)
        self._runs.cancel(id)
        for _ in range(int(CANCEL_SECONDS / POLL_SECONDS)):
            kept = await self._get(id, owner)
            if kept.status not in WORKING:
                return kept
            await self._runs.news(id, POLL_SECONDS)
        return await self._ended(kept, "cancelled", None)

    async def inputs(self, id: str, owner: str) -> list[KeptItem]:
        """The items that a response answers. Raises: NotFound."""
        await self._get(id, owner)
        found = await self._store.conversation(id, owner, with_output=False)
        if found is None:
            raise NotFound(
                f"An earlier response of the conversation of {quoted(id)!r} is gone.",
                at=Sent("response_id"),
                code="response_not_found",
            )
        return found

    async def check_stream(self, kept: Kept, after: int) -> None:
        """Whether its events can be had from there. Raises: InvalidRequest."""
        if not kept.streams:
            raise InvalidRequest(
                "There are events of responses only that were made with 'background' and 'stream'.",
                at=Sent("stream"),
            )
        found, more = await self._store.events(kept.id, after - 1, 1)
        if after >= 0 and not found and not more:
            raise InvalidRequest(
                f"There is no event {after} of this response: it ended before.",
                at=Sent("starting_after"),
            )

    def events(self, request: Request, id: str, after: int, headers: Headers) -> EventsResponse:
        """A stream of a response's events after number `after`, till its end."""

        async def goes_on() -> bool:
            try:
                return (await self.current(request, id)).status in WORKING
            except (Unavailable, RateLimited) as error:  # that passes, but for one
                if error.code == "draining":  # the client is to come again
                    raise ClientDisconnected from error
                await asyncio.sleep(POLL_SECONDS)
                return True
            except MaestraleError:  # a client that comes again is told
                return False

        return EventsResponse(
            self._backend, self._store, self._runs, id, after, headers, goes_on=goes_on
        )


class EventsResponse:
    """Streams events that are kept, and those that still come; leaving it ends nothing."""

    def __init__(
        self,
        backend: Backend,
        store: ResponseStore,
        runs: Runs,
        id: str,
        after: int,
        headers: Headers,
        *,
        goes_on: Callable[[], Awaitable[bool]],
    ) -> None:
        """`goes_on`: whether there will be more of it, where nobody seems to work on it."""
        self._backend = backend
        self._goes_on = goes_on
        self._store = store
        self._runs = runs
        self._id = id
        self._after = after
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: ClientDisconnected, CannotKeep."""
        deployment = context_of(scope).deployment or self._backend.deployments.default
        events = EventStream(send, self._headers, deployment.paused)
        await while_connected(receive, self._write(events), events.tend())

    async def _write(self, events: EventStream) -> None:
        """Raises: CannotKeep before anything was sent; later the stream ends, to be taken up."""
        more = True
        while more or await self._goes_on():
            try:
                found, more = await self._store.events(self._id, self._after, EVENTS_AT_ONCE)
            except CannotKeep as error:
                if not events.is_open:
                    raise
                self._store.warn(error)
                break
            await events.open()
            if found:
                await events.write(b"".join(event for _, event in found))
                self._after = found[-1][0]
            elif more:
                await self._runs.news(self._id, POLL_SECONDS)
        await events.close()


async def _nothing() -> Message:
    """No client waits, and so none leaves."""
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


def not_found(id: str) -> NotFound:
    """There is no such response, or none for this key."""
    return NotFound(
        f"There is no response {quoted(id)!r} here: it was not kept, was deleted, is too old, or "
        "is another key's.",
        at=Sent("response_id"),
        code="response_not_found",
    )
