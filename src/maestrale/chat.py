"""READ FIRST. One chat request, end to end.

    api/ validates the body ──► messages + Options ──► ChatService.chat
        encode        messages → prompt token ids                      (prompt/encode)
        limits        prompt + max_tokens against the context, before any answer begins
        vet           a JSON schema or grammar is compiled elsewhere first
        expand        n choices → n GenerationRequests, a seed for each
    Answer.pieces ──► engine.generate(request) ──► token ids
        decode        token ids → text, never half a character         (prompt/decode)
        tool calls    found in the text, each given whole               (prompt/tools)
        stop strings  found in the text; the sequence is left, so the engine aborts it
        Piece         text, calls, logprobs and finish reason, for api/ to send

An engine knows tokens only. Text, stop strings, choices and usage are all here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import random
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol, TypeVar

import msgspec
from msgspec import Struct

from maestrale.engines.base import (
    Constraint,
    Engine,
    EngineInfo,
    FinishReason,
    GenerationRequest,
    Sampling,
    TokenLogprob,
)
from maestrale.errors import (
    ConstraintError,
    ContextLengthExceeded,
    EngineError,
    InvalidRequest,
    UnsupportedParameter,
)
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.decode import IncrementalDecoder, StopStrings
from maestrale.prompt.encode import PromptEncoder
from maestrale.prompt.messages import ChatMessage, Tool, ToolCall
from maestrale.prompt.tools.base import CallReader, ToolCallParser, ToolFormat, ToolUse
from maestrale.prompt.tools.grammar import argument_constraints, tool_constraint

# Encoding more characters than this takes milliseconds: it leaves the event loop, and no more
# than two such texts are encoded at once, so that the engine keeps its share of the CPU.
LONG_TEXT = 16_384
LONG_TEXTS_AT_ONCE = 2
SEED_MASK = (1 << 64) - 1
T = TypeVar("T")
AnswerFinish = FinishReason | Literal["tool_calls"]
ANY_OBJECT = Constraint("json_schema", '{"type":"object"}')  # `json_object`


class Options(Struct, frozen=True, kw_only=True):
    """How to answer: what the request says beside its prompt, validated and with defaults.

    `max_tokens` None means what remains of the context. `seed` None means draw one. `tools`
    None means that none may be called. `key` names who asks: keys take turns.
    `constraint_param` and `max_tokens_param` name the fields to blame in errors.
    """

    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    max_tokens_param: str = "max_tokens"
    min_tokens: int = 0
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    constraint: Constraint | None = None
    constraint_param: str = "response_format"
    logprobs: int | None = None
    tools: ToolUse | None = None
    key: str = "-"


class LogprobEntry(Struct, frozen=True):
    """The log-probability of one generated token, spelled out.

    `text_offset` is where the token begins in the answer, in characters. `top` holds
    (token id, logprob), most likely first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    text_offset: int


class Piece(Struct):
    """What became ready of one choice; the last piece of a choice has a `finish_reason`."""

    index: int
    text: str
    logprobs: list[LogprobEntry]
    finish_reason: AnswerFinish | None
    calls: tuple[ToolCall, ...] = ()


class Usage(Struct):
    """Token counts of one answer, all choices together; complete once every choice ended."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    def body(self) -> dict[str, object]:
        """As both SDKs read it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


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


class Vetter(Protocol):
    """Compiles a constraint where it can do no harm. Raises: ConstraintError."""

    def vet(self, constraint: Constraint, key: str = "-") -> Awaitable[object]: ...


class Answer:
    """An admitted request: everything is checked, nothing has run yet. Iterate `pieces()` once.

    `lead` is text that every choice begins with (Mistral's `prefix`). `continues` tells that
    the answer goes on from text, so that a first space is a real one.
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
        lead: str = "",
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
        self._lead = lead
        self._continues = continues
        self._on_gap = on_gap
        self._tool_format = tool_format if options.tools is not None else None

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
        ledger = _LogprobLedger(decoder, self._vocabulary) if request.logprobs is not None else None
        text = self._lead
        offset = len(self._lead)  # characters given out, or not held back any more
        generated = 0
        if ledger is not None:
            ledger.offset = offset
        if request.max_tokens == 0:  # the prompt fills the context to the last token
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
                    parsed = parser.push(fresh, last=finish is not None)
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
                    yield Piece(index, text, entries, "tool_calls" if called else finish, calls)
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

    def _tool_parser(self, request: GenerationRequest) -> ToolCallParser | None:
        """Finds the calls in one choice; their ids follow from the request alone."""
        use = self._options.tools
        if use is None or self._tool_format is None:
            return None
        key = hashlib.blake2b(repr((request.seed, request.prompt)).encode()).digest()
        return self._tool_format.parser(CallReader(use.callable, key), parallel=use.parallel)

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

    def __init__(self, decoder: IncrementalDecoder, vocabulary: Vocabulary) -> None:
        self.offset = 0
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
            if position < len(logprobs) and not ends:
                entry = logprobs[position]
                self._held.append(LogprobEntry(token_id, entry.logprob, entry.top, self.offset))
            fresh = self._decoder.push((token_id,))
            self.offset += len(fresh)
            text += fresh
        return text

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


class ChatService:
    """Turns messages or prompts into Answers, for one model on one engine."""

    def __init__(
        self,
        engine: Engine,
        encoder: PromptEncoder,
        vocabulary: Vocabulary,
        vetter: Vetter,
        *,
        seed: int | None = None,
        on_gap: Callable[[float], None] | None = None,
    ) -> None:
        self.engine = engine
        self.encoder = encoder
        self.vocabulary = vocabulary
        self._vetter = vetter
        self._on_gap = on_gap
        self._heavy = ThreadPoolExecutor(LONG_TEXTS_AT_ONCE, "long-texts")
        self._seeds = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311

    @property
    def info(self) -> EngineInfo:
        return self.engine.describe()

    @property
    def context_length(self) -> int:
        """Prompt and answer together, in tokens: the model's limit, or the KV cache's if less."""
        info = self.info
        return min(info.max_model_len, info.kv_capacity_tokens)

    async def chat(
        self, messages: Sequence[ChatMessage], options: Options, *, prefix: bool = False
    ) -> Answer:
        """Prepare the answer to a conversation.

        With `prefix` the last message is the assistant's, and the answer goes on from it.
        Raises: InvalidRequest and its kin (400).
        """
        begun = time.perf_counter()
        use = options.tools
        if use is not None:
            constraint = await self._constrain(options, use)
            param = "tools" if options.constraint is None else options.constraint_param
            options = msgspec.structs.replace(
                options, constraint=constraint, constraint_param=param
            )
        tools = use.definitions if use is not None else None
        token_ids = await self.encode_chat(messages, prefix=prefix, tools=tools)
        lead = messages[-1].content if prefix else ""
        answer = await self._prepare("chatcmpl", [token_ids], options, lead, "messages")
        answer.timings.started = begun
        return answer

    async def complete(self, prompts: Sequence[str | Sequence[int]], options: Options) -> Answer:
        """Prepare the continuation of plain prompts: choices of the first come first.

        Raises: InvalidRequest and its kin (400).
        """
        begun = time.perf_counter()
        encoded = []
        for prompt in prompts:
            if isinstance(prompt, str):
                encoded.append(await self.encode_text(prompt))
            else:
                if len(prompt) > self.context_length:
                    what = f"the prompt has {len(prompt)} tokens"
                    raise _too_long(self.context_length, what, "prompt")
                encoded.append(self.check_token_ids(prompt, "prompt"))
        answer = await self._prepare("cmpl", encoded, options, "", "prompt")
        answer.timings.started = begun
        return answer

    async def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        prefix: bool = False,
        tools: Sequence[Tool] | None = None,
    ) -> tuple[int, ...]:
        """The prompt's token ids. Raises: InvalidRequest, ContextLengthExceeded."""
        # A template may take what time it likes, even for a short conversation.
        heavy = sum(map(_size, messages)) > LONG_TEXT or bool(tools)
        limit = self.context_length

        def encode() -> tuple[int, ...]:
            return self.encoder.encode_chat(
                messages, tools=tools, continue_final=prefix, max_tokens=limit
            ).token_ids

        return await self._in_thread(encode, heavy=heavy)

    async def encode_text(self, text: str, *, add_bos: bool = True) -> tuple[int, ...]:
        """A plain text's token ids. Raises: ContextLengthExceeded."""
        limit = self.context_length

        def encode() -> tuple[int, ...]:
            return self.encoder.encode_text(text, add_bos=add_bos, max_tokens=limit)

        return encode() if len(text) <= LONG_TEXT else await self._in_thread(encode, heavy=True)

    async def decode(self, token_ids: Sequence[int]) -> str:
        """What these ids spell, at most as many as the context holds. Raises: InvalidRequest."""
        limit = self.context_length
        if len(token_ids) > limit:  # the longest tokens would spell a hundred times the request
            raise InvalidRequest(
                f"'tokens' has {len(token_ids)} ids; up to {limit}, the context length, are "
                "spelled. Send them in parts.",
                param="tokens",
            )
        checked = self.check_token_ids(token_ids, "tokens")
        heavy = len(checked) > LONG_TEXT
        return await self._in_thread(lambda: self.encoder.decode(checked), heavy=heavy)

    async def _in_thread(self, work: Callable[[], T], *, heavy: bool) -> T:
        pool = self._heavy if heavy else None
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def check_token_ids(self, token_ids: Sequence[int], param: str) -> tuple[int, ...]:
        """Raises: InvalidRequest when an id is outside the vocabulary."""
        size = len(self.vocabulary)
        for token_id in token_ids:
            if not 0 <= token_id < size:
                raise InvalidRequest(
                    f"Token id {token_id} is outside the vocabulary: ids are 0 to {size - 1}.",
                    param=param,
                )
        return tuple(token_ids)

    def spell(self, token_id: int) -> tuple[str, bytes]:
        """A token as text for logprobs, and its bytes; a control token spells its name."""
        if not 0 <= token_id < len(self.vocabulary):
            return "", b""
        raw = self.vocabulary.token_bytes[token_id]
        if not raw:
            name = self._control_names.get(token_id, "")
            return name, name.encode()
        try:
            return raw.decode(), raw
        except UnicodeDecodeError:  # a part of a character: spelled as OpenAI does
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw

    @functools.cached_property
    def _control_names(self) -> dict[int, str]:
        return {token_id: name for name, token_id in self.vocabulary.control_ids.items()}

    async def _constrain(self, options: Options, use: ToolUse) -> Constraint | None:
        """What the answer is constrained to, vetted. Raises: InvalidRequest naming the tool."""
        form = self.encoder.tool_format
        if form is None:
            raise UnsupportedParameter(
                "'tools' is not supported by this model: its chat template knows no tools, or "
                "none of the formats that are understood here (docs/tools.md).",
                param="tools",
            )
        constraint = tool_constraint(form, use, options.constraint)
        if constraint is None:
            return None
        _require(self.info, "grammar", "tools")
        try:
            await self._vetter.vet(constraint, options.key)
        except ConstraintError as error:
            for index, alone in argument_constraints(use):
                try:
                    await self._vetter.vet(alone, options.key)
                except ConstraintError as cause:
                    where = f"tools[{index}].function.parameters"
                    raise InvalidRequest(str(cause), param=where) from cause
            if options.constraint is None:
                raise InvalidRequest(str(error), param="tools") from error
        return constraint

    async def _prepare(
        self,
        kind: str,
        prompts: Sequence[tuple[int, ...]],
        options: Options,
        lead: str,
        param: str,
    ) -> Answer:
        self._check_options(options)
        budgets = [self._max_tokens(len(prompt), options, param) for prompt in prompts]
        if options.constraint is not None:
            try:
                await self._vetter.vet(options.constraint, options.key)
            except ConstraintError as error:
                raise InvalidRequest(str(error), param=options.constraint_param) from error
        seed = options.seed if options.seed is not None else self._seeds.getrandbits(48)
        seed &= SEED_MASK
        answer_id = f"{kind}-{secrets.token_hex(12)}"
        stop_ids = options.stop_token_ids
        if not options.ignore_eos:
            stop_ids = (*self.vocabulary.eos_token_ids, *stop_ids)
        requests = tuple(
            GenerationRequest(
                request_id=f"{answer_id}-{prompt_index * options.n + choice}",
                prompt=prompt,
                max_tokens=budgets[prompt_index],
                seed=choice_seed(seed, choice),
                sampling=options.sampling,
                min_tokens=options.min_tokens,
                stop_token_ids=stop_ids,
                constraint=options.constraint,
                logprobs=options.logprobs,
            )
            for prompt_index, prompt in enumerate(prompts)
            for choice in range(options.n)
        )
        return Answer(
            answer_id=answer_id,
            engine=self.engine,
            vocabulary=self.vocabulary,
            requests=requests,
            options=options,
            prompt_tokens=sum(map(len, prompts)),
            seed=seed,
            lead=lead,
            continues=bool(lead) or kind == "cmpl",
            on_gap=self._on_gap,
            tool_format=self.encoder.tool_format,
        )

    def _check_options(self, options: Options) -> None:
        """What the engine or the vocabulary can't do is refused by name."""
        info = self.info
        if options.sampling.logit_bias:
            _require(info, "logit_bias", "logit_bias")
            for token_id, _ in options.sampling.logit_bias:
                if not 0 <= token_id < info.vocab_size:
                    raise InvalidRequest(
                        f"Token id {token_id} is outside the vocabulary: "
                        f"ids are 0 to {info.vocab_size - 1}.",
                        param="logit_bias",
                    )
        if options.logprobs:
            _require(info, "top_logprobs", "top_logprobs")
        self.check_token_ids(options.stop_token_ids, "stop_token_ids")
        if options.constraint is not None:
            _require(info, options.constraint.kind, options.constraint_param)
            for given, name in (
                (options.ignore_eos, "ignore_eos"),
                (options.min_tokens > 0, "min_tokens"),
            ):
                if given:
                    raise InvalidRequest(
                        f"'{name}' can't be combined with '{options.constraint_param}': "
                        "a complete document must be able to end.",
                        param=name,
                    )

    def _max_tokens(self, prompt_tokens: int, options: Options, param: str) -> int:
        """How many tokens this prompt's answer may have. Raises: ContextLengthExceeded."""
        limit = self.context_length
        if prompt_tokens == 0:
            raise InvalidRequest("The prompt is empty.", param=param)
        if prompt_tokens > limit:
            raise _too_long(limit, f"the prompt has {prompt_tokens} tokens", param)
        room = limit - prompt_tokens
        max_tokens = room if options.max_tokens is None else options.max_tokens
        if max_tokens > room:
            raise _too_long(
                limit,
                f"the prompt has {prompt_tokens} tokens and '{options.max_tokens_param}' asks "
                f"for {max_tokens} more ({prompt_tokens + max_tokens} in all)",
                param,
            )
        if options.min_tokens > max_tokens:
            raise InvalidRequest(
                f"'min_tokens' ({options.min_tokens}) is more than the answer may have "
                f"({max_tokens}).",
                param="min_tokens",
            )
        return max_tokens


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice `choice` (0-based): the request's own for 0, derived for the others."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _size(message: ChatMessage) -> int:
    """The characters of a message."""
    return len(message.content) + sum(len(call.arguments) for call in message.tool_calls)


def _require(info: EngineInfo, feature: str, param: str) -> None:
    if feature not in info.features:
        raise UnsupportedParameter(
            f"'{param}' is not supported by the engine '{info.engine}'.", param=param
        )


def _too_long(limit: int, what: str, param: str) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"This model's context length is {limit} tokens, but {what}. "
        "Shorten the prompt or ask for fewer tokens.",
        param=param,
    )
