"""A request for an answer, in any dialect: read, prepared, then generated while it is sent.

`answering` makes the endpoint of a route from what the dialect reads its body with. The answer goes
out whole, or as server-sent events as tokens come. The connection is watched all the while: when
the client is gone, leaving `Answer.pieces` aborts the engine's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, structs
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from maestrale.api import sse
from maestrale.api.admission import RETRY_AFTER
from maestrale.api.backend import Backend
from maestrale.api.context import RequestContext, context_of
from maestrale.api.deployment import Deployment
from maestrale.api.dialect import AnswerRequest, Spelling
from maestrale.api.durable.resumable import resumable
from maestrale.api.errors import as_api_error, error_body
from maestrale.api.sse import COMMENT, EventStream, Headers, while_connected
from maestrale.chat.answer import Answer
from maestrale.chat.options import Asked, Inputs, Options, Prompts, Ranking
from maestrale.chat.reader import Piece
from maestrale.chat.service import ChatService
from maestrale.errors import InvalidRequest, Location, MaestraleError, Unavailable
from maestrale.logs import LOGGER
from maestrale.models.sampling_defaults import SamplingDefaults


class Serving(Struct, frozen=True, kw_only=True):
    """What a body is read with: the most choices allowed, the model's sampling defaults, and the
    length of its context in tokens.
    """

    max_n: int
    sampling: SamplingDefaults
    context_length: int


def serving_of(backend: Backend, deployment: Deployment, service: ChatService) -> Serving:
    """What bodies for this model are read with."""
    return Serving(
        max_n=backend.settings.max_n,
        sampling=deployment.sampling,
        context_length=service.context_length,
    )


B = TypeVar("B", bound=Struct)


def answering(
    backend: Backend, body_type: type[B], read: Callable[[B, Serving], AnswerRequest]
) -> Callable[[Request], Awaitable[ASGIApp]]:
    """The endpoint that answers bodies of this type.

    `read` makes an AnswerRequest of a body. A body's `model` says who is to answer.
    Raises: InvalidRequest and its kin.
    """

    async def answer(request: Request) -> ASGIApp:
        await backend.check_ready()
        body = await backend.bodies.read(request.scope, request.receive, body_type)
        return await prepare(backend, request, getattr(body, "model", None), partial(read, body))

    return resumable(backend, answer)


async def prepare(
    backend: Backend,
    request: Request,
    model: str | None,
    read: Callable[[Serving], AnswerRequest],
) -> AnswerResponse:
    """The answer of this model to what `read` gives: all of it is checked, and nothing runs yet.

    Raises: InvalidRequest and its kin.
    """
    context = context_of(request.scope)
    deployment = backend.find(context, model)
    service = await deployment.service()
    context.model = deployment.names[0]
    asked = read(serving_of(backend, deployment, service))
    context.operation = asked.operation
    context.rename(asked.renamed)
    _check_auto(asked.options, deployment.settings.enable_auto_tool_choice)
    options = structs.replace(asked.options, key=context.key)
    if context.run is not None:
        options = context.run.options(options)
    most = service.info.max_num_seqs
    choices = _choices(asked.asked, options, most)
    await deployment.admission.check_room(context.key, choices, most)
    prepared = await while_connected(request.receive, service.answer(asked.asked, options))
    if context.run is not None:
        keep = asked.keep and context.keep
        context.run.begin(prepared, service.info, stream=asked.stream, keep=keep)
    spelling = asked.spelling(service, prepared, context.model)
    return AnswerResponse(backend, deployment, prepared, spelling, stream=asked.stream)


def _choices(asked: Asked, options: Options, most: int) -> int:
    """The sequences that it will run at once, of which the engine takes `most` (Answer.places)."""
    if isinstance(asked, Inputs):
        return min(len(asked.inputs), most)
    if isinstance(asked, Ranking):
        return min(len(asked.documents), most)
    return options.n * (len(asked.prompts) if isinstance(asked, Prompts) else 1)


def _check_auto(options: Options, enabled: bool) -> None:
    """Raises: InvalidRequest when the model would choose and the operator said it may not."""
    if options.tools is not None and not options.tools.required and not enabled:
        choice = Location("tool_choice")
        raise InvalidRequest(
            "This server was started with --no-enable-auto-tool-choice: tools are called only "
            "where ",
            choice,
            " demands a call, or names a tool.",
            at=choice,
        )


class AnswerResponse:
    """An ASGI response that generates while it sends."""

    def __init__(
        self,
        backend: Backend,
        deployment: Deployment,
        answer: Answer,
        spelling: Spelling,
        *,
        stream: bool,
    ) -> None:
        self.spelling = spelling
        self.keep: Callable[[], Awaitable[None]] | None = None
        """Called at the answer's end, before its client is told of it."""
        self._backend = backend
        self._deployment = deployment
        self._answer = answer
        self._stream = stream
        self._key = "-"
        self._reserved = False
        self._texts: list[list[str]] = []  # of each choice, where the log is to show them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: ApiError before anything was sent, ClientDisconnected."""
        answer, backend, deployment = self._answer, self._backend, self._deployment
        context = context_of(scope)
        if not self._reserved:
            await self.reserve(context)
        context.answer, context.answer_id = answer, self.spelling.id
        self._key = context.key
        if backend.settings.log_prompts:
            self._texts = context.texts = [[] for _ in answer.requests]
        deployment.begin(answer)
        try:
            if self._stream:
                events = EventStream(send, headers_of(answer), deployment.paused)
                await while_connected(receive, self._send_events(events, context), events.tend())
            else:
                pieces = await while_connected(receive, self._collect())
                await backend.settle(context)  # so that the headers tell what is left now
                body = self.spelling.whole(pieces)
                if self.keep is not None:
                    await self.keep()
                await _send_json(send, body, headers_of(answer))
        except MaestraleError as error:
            answer.failure = error
            raise
        finally:
            try:
                await backend.settle(context)
            finally:
                deployment.observe(answer)

    @property
    def headers(self) -> Headers:
        """The headers of its own: its seed, and how long it may be."""
        return headers_of(self._answer)

    async def reserve(self, context: RequestContext) -> None:
        """Set aside what it may use of its key's tokens. Raises: RateLimited."""
        self._reserved = True
        most = sum(each.max_tokens for each in self._answer.requests)
        if context.counted is None:
            most += self._answer.usage.prompt_tokens
        elif context.counted >= most:
            return
        else:
            most -= context.counted
        context.charge = await self._backend.accounts.reserve(context.owner, most, context.charge)

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        """The answer's pieces, once it is this key's turn. Raises: Unavailable, EngineError."""
        answer, admission = self._answer, self._deployment.admission
        async with (
            admission.slot(self._key, answer.places, answer.max_num_seqs),
            contextlib.aclosing(answer.pieces()) as pieces,
        ):
            answer.timings.granted = time.perf_counter()
            async for piece in pieces:
                if self._texts:
                    calls = [f"{call.name}({call.arguments})" for call in piece.calls]
                    self._texts[piece.index] += [piece.reasoning, piece.text, *calls]
                yield piece

    async def _collect(self) -> list[Piece]:
        """All pieces of each choice joined into one, by index."""
        texts: list[list[str]] = [[] for _ in self._answer.requests]
        thoughts: list[list[str]] = [[] for _ in self._answer.requests]
        merged = [Piece(index, "", [], None) for index in range(len(texts))]
        async with contextlib.aclosing(self._pieces()) as pieces:
            first = await self._first(anext(pieces))
            async for piece in _chain(first, pieces):
                texts[piece.index].append(piece.text)
                thoughts[piece.index].append(piece.reasoning)
                merged[piece.index].logprobs += piece.logprobs
                merged[piece.index].calls += piece.calls
                merged[piece.index].token_ids += piece.token_ids
                merged[piece.index].finish_reason = piece.finish_reason
                merged[piece.index].stopped_by = piece.stopped_by
        for piece in merged:
            piece.text = "".join(texts[piece.index])
            piece.reasoning = "".join(thoughts[piece.index])
        return merged

    async def _send_events(self, events: EventStream, context: RequestContext) -> None:
        async with contextlib.aclosing(self._pieces()) as pieces:
            # Errors before the first token still get their HTTP status, if they come soon.
            first = asyncio.ensure_future(self._first(anext(pieces)))
            loads = await self._deployment.to_be_loaded()
            patience = sse.PAUSE_KEEP_ALIVE if loads else sse.KEEP_ALIVE
            try:
                await asyncio.wait({first}, timeout=patience)
                if not first.done():
                    await events.open()
                    await events.write(COMMENT)
                await first
            except MaestraleError as error:
                if not events.is_open:
                    raise
                await self._fail(events, error, context)
                return
            finally:
                first.cancel()  # of no effect once it is done
                await asyncio.gather(first, return_exceptions=True)  # and its error was seen
            await events.open()
            try:
                opening = self.spelling.opening()
                if opening:
                    await events.write(opening)
                await self._write_pieces(events, first.result(), pieces)
            except Exception as error:
                if not isinstance(error, MaestraleError):
                    LOGGER.exception("A stream failed")
                await self._fail(events, error, context)
                return
        await self._backend.settle(context)
        if self.keep is not None:
            await self.keep()
        await events.write(self.spelling.closing())
        await events.close()

    async def _write_pieces(
        self, events: EventStream, first: Piece, rest: AsyncIterator[Piece]
    ) -> None:
        event, write = self.spelling.event, events.write
        left = len(self._answer.requests) - (first.finish_reason is not None)
        await write(event(first, is_last=left == 0))
        async for piece in rest:
            if piece.finish_reason is not None:
                left -= 1
            await write(event(piece, is_last=left == 0))

    async def _fail(self, events: EventStream, error: Exception, context: RequestContext) -> None:
        """The 200 is out: the error goes into the stream, and ends it."""
        self._answer.failure = error
        await self._backend.settle(context)
        told = error_body(as_api_error(error), context)
        await events.write(self.spelling.failure(told))
        await events.close()

    async def _first(self, piece: Awaitable[Piece]) -> Piece:
        """The first piece, within the queue's time limit. Raises: Unavailable."""
        limit = self._backend.settings.queue_timeout
        try:
            async with asyncio.timeout(limit):
                return await piece
        except TimeoutError as error:
            raise Unavailable(
                f"No token came within {limit:g} seconds (--queue-timeout).",
                code="queue_timeout",
                retry_after=RETRY_AFTER,
            ) from error


async def _chain(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


def headers_of(answer: Answer) -> Headers:
    """The seed used, given or drawn: with it the request can be run again exactly. The most
    tokens that a choice may have: as asked for, or what the prompt leaves room for. Embeddings
    and scores have neither.
    """
    if answer.embeds:
        return []
    most = min(request.max_tokens for request in answer.requests)
    return [(b"x-seed", b"%d" % answer.seed), (b"x-max-tokens", b"%d" % most)]


async def _send_json(send: Send, body: dict[str, Any], headers: Headers) -> None:
    data = msgspec.json.encode(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data})
