"""READ FIRST. One request for an answer, end to end.

    api/<dialect>/ reads the body ──► Conversation or Prompts, and Options ──► ChatService.answer
        encode        messages → prompt token ids                      (chat/tokenizer, prompt/)
        limits        prompt + max_tokens against the context, before any answer begins
        vet           a JSON schema or grammar is compiled elsewhere first
        expand        n choices → n GenerationRequests, a seed for each
    Answer.pieces (chat/answer.py) ──► engine.generate(request) ──► token ids
        decode        token ids → text, never half a character         (prompt/decode)
        tool calls    found in the text, each given whole               (prompt/tools)
        stop strings  found in the text; the sequence is left, so the engine aborts it
        Piece         text, calls, logprobs and finish reason, for the dialect to spell

An engine knows tokens only, a dialect words only. Text, stop strings, choices and usage are all
here and in chat/answer.py; nothing here knows what any API calls them.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from msgspec import structs

from maestrale.chat.answer import Answer
from maestrale.chat.options import (
    CONSTRAINT,
    PROMPT,
    TOOLS,
    Conversation,
    Options,
    Prompts,
    check_options,
    check_token_ids,
    require,
    room_for_answer,
)
from maestrale.chat.tokenizer import Tokenizer
from maestrale.engines.base import Constraint, Engine, EngineInfo, GenerationRequest
from maestrale.errors import ConstraintError, InvalidRequest, Location, UnsupportedParameter
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.encode import PromptEncoder
from maestrale.prompt.messages import MESSAGES
from maestrale.prompt.tools.base import ToolUse
from maestrale.prompt.tools.grammar import argument_constraints, tool_constraint

SEED_MASK = (1 << 64) - 1


class Vetter(Protocol):
    """Compiles a constraint where it can do no harm. Raises: ConstraintError."""

    def vet(self, constraint: Constraint, key: str = "-") -> Awaitable[object]: ...


class ChatService:
    """Turns conversations and prompts into Answers, for one model on one engine."""

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
        self.tokenizer = Tokenizer(encoder, vocabulary, lambda: self.context_length)
        self._vetter = vetter
        self._on_gap = on_gap
        self._seeds = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311

    @property
    def info(self) -> EngineInfo:
        return self.engine.describe()

    @property
    def context_length(self) -> int:
        """Prompt and answer together, in tokens: the model's limit, or the KV cache's if less."""
        info = self.info
        return min(info.max_model_len, info.kv_capacity_tokens)

    async def answer(self, asked: Conversation | Prompts, options: Options) -> Answer:
        """Prepare an answer: all of it is checked, and nothing runs yet.

        Raises: InvalidRequest and its kin (400).
        """
        begun = time.perf_counter()
        if isinstance(asked, Conversation):
            answer = await self._chat(asked, options)
        else:
            answer = await self._continue(asked, options)
        answer.timings.started = begun
        return answer

    async def _chat(self, conversation: Conversation, options: Options) -> Answer:
        """The answer to a conversation."""
        use, constrained_by = options.tools, CONSTRAINT
        if use is not None:
            constrained_by = TOOLS if options.constraint is None else CONSTRAINT
            constraint = await self._tool_constraint(options, use)
            options = structs.replace(options, constraint=constraint)
        token_ids = await self.tokenizer.encode_chat(
            conversation,
            tools=use.definitions if use is not None else None,
            variables=options.template_variables,
        )
        lead = conversation.messages[-1].text if conversation.continues else ""
        return await self._prepare([token_ids], options, [lead], MESSAGES, constrained_by)

    async def _continue(self, asked: Prompts, options: Options) -> Answer:
        """The continuation of plain prompts: choices of the first come first."""
        special = options.add_special_tokens
        encode = self.tokenizer.encode_prompt
        encoded = [await encode(prompt, add_bos=special) for prompt in asked.prompts]
        leads = [""] * len(encoded)
        if options.echo:
            leads = [
                prompt if isinstance(prompt, str) else self.tokenizer.plain(ids)
                for prompt, ids in zip(asked.prompts, encoded, strict=True)
            ]
        return await self._prepare(encoded, options, leads, PROMPT, CONSTRAINT)

    async def _tool_constraint(self, options: Options, use: ToolUse) -> Constraint | None:
        """What the answer is constrained to, vetted. Raises: InvalidRequest naming the tool."""
        form = self.encoder.tool_format
        if form is None:
            raise UnsupportedParameter(
                TOOLS,
                " is not supported by this model: it has no chat template. Give one with "
                "--chat-template.",
                at=TOOLS,
            )
        constraint = tool_constraint(form, use, options.constraint)
        if constraint is None:
            return None
        require(self.info, "grammar", TOOLS)
        try:
            await self._vetter.vet(constraint, options.key)
        except ConstraintError as error:
            for index, alone in argument_constraints(use):
                await self._vet(alone, options.key, TOOLS.at(index, "parameters"))
            if options.constraint is None:
                raise InvalidRequest(str(error), at=TOOLS) from error
        return constraint

    async def _vet(self, constraint: Constraint, key: str, at: Location) -> None:
        """Raises: InvalidRequest for a constraint, from `at`, that can't be compiled."""
        try:
            await self._vetter.vet(constraint, key)
        except ConstraintError as error:
            raise InvalidRequest(str(error), at=at) from error

    async def _prepare(
        self,
        prompts: Sequence[tuple[int, ...]],
        options: Options,
        leads: Sequence[str],
        prompt_at: Location,
        constrained_by: Location,
    ) -> Answer:
        """The answer to encoded prompts. Raises: InvalidRequest and its kin."""
        check_options(options, self.info, constrained_by)
        size = len(self.vocabulary)
        check_token_ids(options.stop_token_ids, size, Location("stop_token_ids"))
        budgets = [
            room_for_answer(len(prompt), options, self.context_length, prompt_at)
            for prompt in prompts
        ]
        if options.constraint is not None:
            await self._vet(options.constraint, options.key, constrained_by)
        seed = options.seed if options.seed is not None else self._seeds.getrandbits(48)
        seed &= SEED_MASK
        answer_id = secrets.token_hex(12)
        control = self.vocabulary.control_ids
        # A control token has no text: as a stop string it is found by its id.
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
            continues=any(leads) or prompt_at == PROMPT,
            on_gap=self._on_gap,
            tool_format=self.encoder.tool_format,
        )


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice `choice` (0-based): the request's own for 0, derived for the others."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
