"""READ FIRST. One chat request, end to end.

    api/ validates the body ──► messages + Options ──► ChatService.chat
        encode        messages → prompt token ids                      (prompt/encode)
        limits        prompt + max_tokens against the context, before any answer begins
        vet           a JSON schema or grammar is compiled elsewhere first
        expand        n choices → n GenerationRequests, a seed for each
    Answer.pieces (chat/answer.py) ──► engine.generate(request) ──► token ids
        decode        token ids → text, never half a character         (prompt/decode)
        tool calls    found in the text, each given whole               (prompt/tools)
        stop strings  found in the text; the sequence is left, so the engine aborts it
        Piece         text, calls, logprobs and finish reason, for api/ to send

An engine knows tokens only. Text, stop strings, choices and usage are all here and in
chat/answer.py.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import msgspec

from maestrale.chat.answer import Answer, Options
from maestrale.engines.base import (
    Constraint,
    Engine,
    EngineInfo,
    GenerationRequest,
)
from maestrale.errors import (
    ConstraintError,
    ContextLengthExceeded,
    InvalidRequest,
    UnsupportedParameter,
)
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.decode import IncrementalDecoder
from maestrale.prompt.encode import PromptEncoder
from maestrale.prompt.jinja import template_variables
from maestrale.prompt.messages import ChatMessage, Tool
from maestrale.prompt.tools.base import ToolUse
from maestrale.prompt.tools.grammar import argument_constraints, tool_constraint

# Encoding more characters than this takes milliseconds: it leaves the event loop, and no more
# than two such texts are encoded at once, so that the engine keeps its share of the CPU.
LONG_TEXT = 16_384
LONG_TEXTS_AT_ONCE = 2
SEED_MASK = (1 << 64) - 1
T = TypeVar("T")
ANY_OBJECT = Constraint("json_schema", '{"type":"object"}')  # `json_object`


class Vetter(Protocol):
    """Compiles a constraint where it can do no harm. Raises: ConstraintError."""

    def vet(self, constraint: Constraint, key: str = "-") -> Awaitable[object]: ...


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
        token_ids = await self.encode_chat(
            messages, prefix=prefix, tools=tools, variables=dict(options.template_variables)
        )
        lead = messages[-1].text if prefix else ""
        answer = await self._prepare("chatcmpl", [token_ids], options, [lead], "messages")
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
                encoded.append(await self.encode_text(prompt, add_bos=options.add_special_tokens))
            else:
                if len(prompt) > self.context_length:
                    what = f"the prompt has {len(prompt)} tokens"
                    raise _too_long(self.context_length, what, "prompt")
                encoded.append(self.check_token_ids(prompt, "prompt"))
        leads = [""] * len(encoded)
        if options.echo:
            leads = [
                prompt if isinstance(prompt, str) else self._spelled(ids)
                for prompt, ids in zip(prompts, encoded, strict=True)
            ]
        answer = await self._prepare("cmpl", encoded, options, leads, "prompt")
        answer.timings.started = begun
        return answer

    def _spelled(self, token_ids: Sequence[int]) -> str:
        """A prompt's text as an answer would have it: without control tokens."""
        return IncrementalDecoder(self.vocabulary).push(token_ids)

    async def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        prefix: bool = False,
        tools: Sequence[Tool] | None = None,
        variables: Mapping[str, bool] | None = None,
    ) -> tuple[int, ...]:
        """The prompt's token ids; the template knows `variables`, too.

        Raises: InvalidRequest, ContextLengthExceeded.
        """
        # A template may take what time it likes, even for a short conversation.
        heavy = sum(map(_size, messages)) > LONG_TEXT or bool(tools)
        limit = self.context_length

        def encode() -> tuple[int, ...]:
            with template_variables(variables or {}):
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
                "'tools' is not supported by this model: it has no chat template. Give one with "
                "--chat-template.",
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
        leads: Sequence[str],
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
        control = self.vocabulary.control_ids
        # A control token has no text: a stop string that is its name is found by its id.
        named = (control[stop] for stop in options.stop if stop in control)
        stop_ids = (*options.stop_token_ids, *named)
        if not options.ignore_eos:
            stop_ids = (*self.vocabulary.eos_token_ids, *stop_ids)
        scored = options.prompt_logprobs
        if options.echo and options.logprobs is not None:
            scored = max(options.logprobs, scored or 0)
        requests = tuple(
            GenerationRequest(
                request_id=f"{answer_id}-{prompt_index * options.n + choice}",
                prompt=prompt,
                max_tokens=budgets[prompt_index],
                seed=choice_seed(seed, choice),
                sampling=options.sampling,
                min_tokens=options.min_tokens,
                stop_token_ids=tuple(dict.fromkeys(stop_ids)),
                constraint=options.constraint,
                logprobs=options.logprobs,
                prompt_logprobs=scored,
                share=options.key,
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
            leads=[lead for lead in leads for _ in range(options.n)],
            continues=any(leads) or kind == "cmpl",
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
        if options.logprobs or options.prompt_logprobs is not None:
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
        if max_tokens and not room and options.max_tokens is not None:
            raise _too_long(
                limit,
                f"the prompt has {prompt_tokens} tokens, which leaves no room for the "
                f"{max_tokens} that '{options.max_tokens_param}' asks for",
                param,
            )
        max_tokens = min(max_tokens, room)
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
    return len(message.text) + sum(len(call.arguments) for call in message.tool_calls)


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
