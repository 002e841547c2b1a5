"""One answer while it is generated: its choices, usage and times.

`Answer.pieces` is what a dialect spells and api/ sends on; chat/reader.py makes them of each
choice's tokens. chat/service.py makes Answers from requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

from msgspec import Struct, structs

from maestrale.chat.embedding import unit_vector
from maestrale.chat.options import Options
from maestrale.chat.ranking import score_of
from maestrale.chat.reader import ChoiceReader, Formats, Piece
from maestrale.engines.base import (
    Constraint,
    Engine,
    FinishReason,
    GenerationRequest,
    TokenDelta,
    TokenLogprob,
)
from maestrale.errors import EngineError
from maestrale.models.vocabulary import Vocabulary


class Usage(Struct):
    """Token counts of one answer, all choices together; complete once every choice ended."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion's


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
    def computed(self) -> float:
        """From its first step to its last one so far."""
        if self.granted is None:
            return 0.0
        first = self.granted + self.engine_wait
        return max(0.0, (self.finished or time.perf_counter()) - first)

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
        formats: Formats,
        dimensions: int | None = None,
        ranks: bool = False,
    ) -> None:
        """`dimensions`: of embeddings. `ranks`: scores are asked for, not embeddings."""
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
        self._formats = formats
        self._dimensions = dimensions
        self.embeddings: dict[int, bytes] = {}
        """By choice, where they are asked for: unit vectors, float32, little-endian."""
        self._ranks = ranks
        self.scores: dict[int, float] = {}
        """By choice, where they are asked for: from 0 to 1."""
        self._one_by_one = False
        self._cached: int | None = None
        self._told: dict[int, tuple[int, int]] = {}  # by choice, where they come in turn

    @property
    def options(self) -> Options:
        """As asked for."""
        return self._options

    def constrain(self, vetted: Constraint) -> None:
        """Send what was vetted, as it was written down, with every request."""
        self.requests = tuple(
            structs.replace(request, constraint=vetted) for request in self.requests
        )

    def repeatable(self, answer_id: str, created: int, cached_tokens: int | None = None) -> None:
        """Let its pieces, too, follow from its request alone, as its tokens do: a piece for each
        token, and choices in turn, however they come. With these facts of an answer that was
        begun before, it is the same one again. Its requests are called by both ids: the first may
        still run elsewhere.
        """
        if answer_id != self.id:
            self.requests = tuple(
                structs.replace(each, request_id=f"{answer_id}.{each.request_id}")
                for each in self.requests
            )
        self.id, self.created = answer_id, created
        self._one_by_one = True
        self._cached = cached_tokens
        if cached_tokens is not None:
            self.usage.cached_tokens = cached_tokens

    @property
    def usage_so_far(self) -> Usage:
        """The usage with the piece that came last; choices in turn may be further by now."""
        if not self._told:
            return self.usage
        return structs.replace(
            self.usage,
            completion_tokens=sum(tokens for tokens, _ in self._told.values()),
            reasoning_tokens=sum(thoughts for _, thoughts in self._told.values()),
        )

    @property
    def embeds(self) -> bool:
        """Whether embeddings or scores are asked for, so that nothing is generated."""
        return self.requests[0].embed

    @property
    def places(self) -> int:
        """How many of its sequences run at once: of embeddings no more than the engine takes."""
        count = len(self.requests)
        return min(count, self.max_num_seqs) if self.embeds else count

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

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """Generate: pieces of all choices as they come.

        Closing the iterator aborts whatever still runs. It raises: EngineError.
        """
        if len(self.requests) == 1:
            return self._sequence(0)
        return self._in_turn() if self._one_by_one else self._as_they_come()

    async def _in_turn(self) -> AsyncGenerator[Piece, None]:
        """A piece of each choice that has not ended, again and again; the first one when all have
        begun, so that it is known what of their prompts was cached.
        """
        held = {index: deque[Piece]() for index in range(len(self.requests))}
        turns = deque(held)
        async with contextlib.aclosing(self._as_they_come()) as pieces:
            async for piece in pieces:
                held[piece.index].append(piece)
                if not self._told and not all(held.values()):
                    continue
                while turns and held[turns[0]]:
                    due = held[turns[0]].popleft()
                    self._told[due.index] = due.used
                    yield due
                    if due.finish_reason is None:
                        turns.rotate(-1)
                    else:
                        turns.popleft()

    async def _as_they_come(self) -> AsyncGenerator[Piece, None]:
        queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        places = asyncio.Semaphore(self.places)

        async def feed(index: int) -> None:
            try:
                async with places, contextlib.aclosing(self._sequence(index)) as sequence:
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
        """One choice: tokens from the engine, pieces out."""
        request, lead = self.requests[index], self._leads[index]
        nothing = request.max_tokens == 0 and request.prompt_logprobs is None
        if nothing and not request.embed:
            self._finish(index, "length", 0)
            yield Piece(index, lead, [], "length")
            return
        reader = ChoiceReader(
            *(index, request, self._vocabulary, self._options, self._formats),
            lead=lead,
            continues=self._continues,
        )
        last = 0.0
        stream = self._engine.generate(request)
        try:
            async for whole in stream:
                for delta in _split(whole) if self._one_by_one else (whole,):
                    now = time.perf_counter()
                    if not reader.generated:
                        if self._cached is None:
                            self.usage.cached_tokens += self._count_cached(
                                index, delta.cached_tokens
                            )
                        if self.timings.first_token is None:
                            self.timings.first_token = now
                            self.timings.engine_wait = delta.waited
                    elif self._on_gap is not None:
                        self._on_gap(now - last)
                    last = now
                    if delta.prompt_logprobs is not None:
                        self.prompt_logprobs[index] = delta.prompt_logprobs
                        reader.take_prompt(delta.prompt_logprobs)
                    if delta.embedding is not None:
                        self._take(index, delta.embedding)
                    thought = reader.reasoning_tokens
                    piece = reader.push(delta)
                    self.usage.completion_tokens += len(delta.token_ids)
                    self.usage.reasoning_tokens += reader.reasoning_tokens - thought
                    if reader.finish is not None:
                        self._finish(index, reader.finish, reader.generated)
                    if piece is not None:
                        if self._one_by_one:
                            piece.used = (reader.generated, reader.reasoning_tokens)
                        yield piece
                    if reader.finish is not None:
                        return
            raise EngineError("The engine ended an answer without saying why.")
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    def _take(self, index: int, pooled: bytes) -> None:
        """Keep what came for an input. Raises: EngineError for what is no number."""
        if self._ranks:
            self.scores[index] = score_of(pooled)
        else:
            self.embeddings[index] = unit_vector(pooled, self._dimensions)

    def _finish(self, index: int, reason: FinishReason, tokens: int) -> None:
        self.finish_reasons[index] = reason
        self.lengths[index] = tokens
        if len(self.finish_reasons) == len(self.requests):
            self.timings.finished = time.perf_counter()

    def _count_cached(self, index: int, cached: int) -> int:
        """The choices of one prompt share it: only the first one's cached tokens count."""
        return cached if index % self._options.n == 0 else 0


def _split(delta: TokenDelta) -> Iterator[TokenDelta]:
    """The same tokens, one in each delta: how many come at once is up to the engine's load."""
    last = len(delta.token_ids) - 1
    if last < 1:
        if delta.token_ids or delta.finish_reason is not None:
            yield delta
        return
    for place, token in enumerate(delta.token_ids):
        yield TokenDelta(
            token_ids=(token,),
            finish_reason=delta.finish_reason if place == last else None,
            logprobs=None if delta.logprobs is None else delta.logprobs[place : place + 1],
            cached_tokens=0 if place else delta.cached_tokens,
            waited=0.0 if place else delta.waited,
            prompt_logprobs=None if place else delta.prompt_logprobs,
        )
