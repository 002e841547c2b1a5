"""One answer while it is generated: token ids → text, tool calls, log-probabilities, usage.

`Answer.pieces` is what a dialect spells and api/ sends on. Stop strings are found here, and never
half a character or half a stop string is given away. chat/service.py makes Answers from requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Literal

from msgspec import Struct

from maestrale.chat.options import Options
from maestrale.engines.base import Engine, FinishReason, GenerationRequest, TokenLogprob
from maestrale.errors import EngineError
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.decode import IncrementalDecoder, StopStrings
from maestrale.prompt.messages import ToolCall
from maestrale.prompt.tools.base import ToolFormat
from maestrale.prompt.tools.reading import ToolCallParser

AnswerFinish = FinishReason | Literal["calls"]  # it ended with calls of tools


class LogprobEntry(Struct, frozen=True):
    """The log-probability of one token, spelled out; None for a prompt's first.

    `text_offset` is where the token begins in the answer, in characters. `top` holds
    (token id, logprob), most likely first.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    text_offset: int


class Piece(Struct):
    """What became ready of one choice; the last piece of a choice has a `finish_reason`.

    `stopped_by` is the stop string that ended it, if one did.
    """

    index: int
    text: str
    logprobs: list[LogprobEntry]
    finish_reason: AnswerFinish | None
    calls: tuple[ToolCall, ...] = ()
    stopped_by: str | None = None


class Usage(Struct):
    """Token counts of one answer, all choices together; complete once every choice ended."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0


class Timings:
    """When things happened to one answer, in seconds of the monotonic clock.

    `started`: the request came; `prepared`: its prompt is encoded, its constraint vetted.
    `granted`: it was handed to the engine. `engine_wait`: how long it then waited there until
    its first step. What has several choices is told by the one that spoke first.
    """

    __slots__ = ("engine_wait", "finished", "first_token", "granted", "prepared", "started")

    def __init__(self) -> None:
        self.started = self.prepared = time.perf_counter()
        self.granted: float | None = None
        self.engine_wait = 0.0
        self.first_token: float | None = None
        self.finished: float | None = None

    @property
    def ttft(self) -> float | None:
        """From request to first token."""
        return None if self.first_token is None else self.first_token - self.started

    @property
    def queue(self) -> float | None:
        """From the prepared prompt to its first step in the engine; known with the first token."""
        if self.first_token is None or self.granted is None:
            return None
        waited = self.granted - self.prepared + self.engine_wait
        return min(waited, self.first_token - self.prepared)

    @property
    def prefill(self) -> float | None:
        """From its first step to its first token."""
        if self.first_token is None or (queue := self.queue) is None:
            return None
        return self.first_token - self.prepared - queue

    @property
    def decode(self) -> float | None:
        """From first token to last."""
        if self.first_token is None or self.finished is None:
            return None
        return self.finished - self.first_token


class Answer:
    """An admitted request: everything is checked, nothing has run yet. Iterate `pieces()` once.

    `leads` are what each choice begins with (Mistral's `prefix`, or the prompt itself).
    `continues` tells that the answer goes on from text, so that a first space is a real one.
    """

    def __init__(
        self,
        *,
        answer_id: str,
        engine: Engine,
        vocabulary: Vocabulary,
        requests: tuple[GenerationRequest, ...],
        options: Options,
        prompt_tokens: int,
        seed: int,
        leads: Sequence[str],
        continues: bool = False,
        on_gap: Callable[[float], None] | None = None,
        tool_format: ToolFormat | None = None,
    ) -> None:
        self.id = answer_id
        self.created = int(time.time())
        self.requests = requests
        self.seed = seed
        self.usage = Usage(prompt_tokens)
        self.timings = Timings()
        self.finish_reasons: dict[int, FinishReason] = {}
        self.lengths: dict[int, int] = {}  # tokens of each choice that ended
        self.failure: Exception | None = None  # what ended it early; None: its client left
        self._engine = engine
        self._vocabulary = vocabulary
        self._options = options
        self._leads = leads
        self.prompt_logprobs: dict[int, tuple[TokenLogprob, ...]] = {}  # by choice, as asked for
        self._continues = continues
        self._on_gap = on_gap
        self._tool_format = tool_format if options.tools is not None else None
        control = vocabulary.control_ids
        # A control token has no text: as a stop string it is found by its id.
        self._named_stops = {control[stop]: stop for stop in options.stop if stop in control}

    @property
    def options(self) -> Options:
        """As asked for."""
        return self._options

    @property
    def aborted(self) -> bool:
        """It was left before its end; nothing failed."""
        return self.failure is None and len(self.finish_reasons) < len(self.requests)

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed of all choices together, without the first token of each."""
        seconds = self.timings.decode
        tokens = self.usage.completion_tokens - len(self.requests)
        return tokens / seconds if seconds and tokens > 0 else None

    @property
    def max_num_seqs(self) -> int:
        """How many sequences the engine decodes at once."""
        return self._engine.describe().max_num_seqs

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Generate: pieces of all choices as they come.

        Leaving the iterator aborts whatever still runs. Raises: EngineError.
        """
        if len(self.requests) == 1:
            async with contextlib.aclosing(self._sequence(0)) as sequence:
                async for piece in sequence:
                    yield piece
            return
        queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

        async def feed(index: int) -> None:
            try:
                async with contextlib.aclosing(self._sequence(index)) as sequence:
                    async for piece in sequence:
                        queue.put_nowait(piece)
            except Exception as error:  # handed to the reader below, which raises it
                queue.put_nowait(error)
            else:
                queue.put_nowait(None)

        tasks = [asyncio.create_task(feed(index)) for index in range(len(self.requests))]
        running = len(tasks)
        try:
            while running:
                item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sequence(self, index: int) -> AsyncGenerator[Piece, None]:
        """One choice: tokens from the engine, text out."""
        request = self.requests[index]
        shown = self._tool_format.shown if self._tool_format is not None else None
        decoder = IncrementalDecoder(self._vocabulary, continuing=self._continues, shown=shown)
        parser = self._tool_parser(request)
        stops = StopStrings(self._options.stop) if self._options.stop else None
        ledger = None
        if request.logprobs is not None:
            ledger = _LogprobLedger(decoder, self._vocabulary, with_end=self._options.echo)
        text = self._leads[index]
        offset = len(text)  # characters given out, or not held back any more
        generated = 0
        if ledger is not None:
            ledger.offset = offset
        if request.max_tokens == 0 and request.prompt_logprobs is None:
            self._finish(index, "length", 0)
            yield Piece(index, text, [], "length")
            return
        last = 0.0
        begun = False
        stream = self._engine.generate(request)
        try:
            async for delta in stream:
                now = time.perf_counter()
                if not generated:
                    self.usage.cached_tokens += self._count_cached(index, delta.cached_tokens)
                    if self.timings.first_token is None:
                        self.timings.first_token = now
                        self.timings.engine_wait = delta.waited
                elif self._on_gap is not None:
                    self._on_gap(now - last)
                last = now
                if delta.prompt_logprobs is not None:
                    self.prompt_logprobs[index] = delta.prompt_logprobs
                    if ledger is not None and self._options.echo:
                        ledger.begin_with(self._of_prompt(request, delta.prompt_logprobs))
                generated += len(delta.token_ids)
                self.usage.completion_tokens += len(delta.token_ids)
                finish = delta.finish_reason
                if ledger is None:
                    fresh = decoder.push(delta.token_ids)
                else:
                    fresh = ledger.push(delta.token_ids, delta.logprobs or (), finish == "stop")
                if finish is not None:
                    fresh += decoder.flush()
                calls: tuple[ToolCall, ...] = ()
                if parser is not None:
                    parsed = parser.push(fresh, last=finish is not None, cut=finish == "length")
                    fresh, calls = parsed.text, parsed.calls
                    offset += parsed.taken
                    if parser.done:
                        finish = "stop"
                matched = None
                if stops is not None and generated > request.min_tokens:
                    fresh, matched = stops.push(fresh)
                    if matched is not None:
                        finish = "stop"
                    elif finish is not None:
                        fresh += stops.flush()
                text += fresh
                offset += len(fresh)
                entries: list[LogprobEntry] = []
                if ledger is not None:
                    entries = ledger.take(offset, everything=finish is not None and not matched)
                if finish is not None:
                    self._finish(index, finish, generated)
                    called = finish == "stop" and parser is not None and parser.called
                    ended: AnswerFinish = "calls" if called else finish
                    if matched is None and finish == "stop" and delta.token_ids:
                        matched = self._named_stops.get(delta.token_ids[-1])
                    yield Piece(index, text, entries, ended, calls, matched)
                    return
                # With tools, much may be held back: the first piece tells that work has begun.
                if text or entries or calls or (parser is not None and not begun):
                    begun = True
                    yield Piece(index, text, entries, None, calls)
                    text = ""
            raise EngineError("The engine ended an answer without saying why.")
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    def _of_prompt(
        self, request: GenerationRequest, logprobs: Sequence[TokenLogprob]
    ) -> list[LogprobEntry]:
        """The prompt's tokens as entries of an answer that begins with it."""
        decoder = IncrementalDecoder(self._vocabulary)
        entries, offset = [LogprobEntry(request.prompt[0], None, (), 0)], 0
        for before, entry in zip(request.prompt, logprobs, strict=False):
            offset += len(decoder.push((before,)))
            entries.append(LogprobEntry(entry.token_id, entry.logprob, entry.top, offset))
        return entries

    def _tool_parser(self, request: GenerationRequest) -> ToolCallParser | None:
        """Finds the calls in one choice; their ids follow from the request alone."""
        use = self._options.tools
        if use is None or self._tool_format is None:
            return None
        key = hashlib.blake2b(repr((request.seed, request.prompt)).encode()).digest()
        return self._tool_format.parser(use.reader(key), parallel=use.parallel)

    def _finish(self, index: int, reason: FinishReason, tokens: int) -> None:
        self.finish_reasons[index] = reason
        self.lengths[index] = tokens
        if len(self.finish_reasons) == len(self.requests):
            self.timings.finished = time.perf_counter()

    def _count_cached(self, index: int, cached: int) -> int:
        """The choices of one prompt share it: only the first one's cached tokens count."""
        return cached if index % self._options.n == 0 else 0


class _LogprobLedger:
    """Holds each token's log-probability back until its text is out.

    So that no part of a stop string is given away by the logprobs either.
    """

    def __init__(
        self, decoder: IncrementalDecoder, vocabulary: Vocabulary, *, with_end: bool
    ) -> None:
        """`with_end`: the end-of-sequence token has an entry as well."""
        self.offset = 0
        self._with_end = with_end
        self._decoder = decoder
        self._token_bytes = vocabulary.token_bytes
        self._held: list[LogprobEntry] = []

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], stopped: bool
    ) -> str:
        text = ""
        for position, token_id in enumerate(token_ids):
            # The end-of-sequence token counts, but is no part of the answer.
            ends = stopped and position == len(token_ids) - 1 and not self._token_bytes[token_id]
            if position < len(logprobs) and (self._with_end or not ends):
                entry = logprobs[position]
                self._held.append(LogprobEntry(token_id, entry.logprob, entry.top, self.offset))
            fresh = self._decoder.push((token_id,))
            self.offset += len(fresh)
            text += fresh
        return text

    def begin_with(self, entries: Sequence[LogprobEntry]) -> None:
        """Entries that come before the first generated token's."""
        self._held[:0] = entries

    def take(self, released: int, *, everything: bool) -> list[LogprobEntry]:
        """The entries of tokens that begin before character `released`, in order."""
        if everything:
            ready, self._held = self._held, []
            return ready
        count = 0
        while count < len(self._held) and self._held[count].text_offset < released:
            count += 1
        ready, self._held = self._held[:count], self._held[count:]
        return ready
