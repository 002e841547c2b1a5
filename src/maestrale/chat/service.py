"""READ FIRST. One request for an answer, end to end.

    api/<dialect>/ reads the body ──► Conversation or Prompts, and Options ──► ChatService.answer
        think         what the template is told, if the model thinks    (chat/thinking.py)
        encode        messages → prompt token ids                      (chat/tokenizer, prompt/)
        limits        prompt + max_tokens against the context, before any answer begins
        vet           a JSON schema or grammar is compiled elsewhere first
        expand        n choices → n GenerationRequests, a seed for each
    Answer.pieces (chat/answer.py, chat/reader.py) ──► engine.generate(request) ──► token ids
        decode        token ids → text, never half a character         (prompt/decode)
        thoughts      apart from the answer, never half a tag          (prompt/reasoning)
        tool calls    found in the text, each given whole               (prompt/tools)
        stop strings  found in the text; the sequence is left, so the engine aborts it
        Piece         reasoning, text, calls, logprobs and finish reason, for the dialect to spell

Embeddings (`Inputs`, chat/embedding.py) go the same way: nothing is generated, and an Answer's
`embeddings` has a vector for each. So do rankings (`Ranking`), of which `scores` has numbers.

An engine knows tokens only, a dialect words only. Text, stop strings, choices and usage are all
here and in those two; nothing here knows what any API calls them.
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
from maestrale.chat.embedding import check_dimensions
from maestrale.chat.options import (
    CONSTRAINT,
    PROMPT,
    SUFFIX,
    TOOLS,
    Asked,
    Conversation,
    Inputs,
    Options,
    Prompts,
    Ranking,
    check_options,
    check_token_ids,
    room_for_answer,
)
from maestrale.chat.reader import Formats
from maestrale.chat.task import check_task
from maestrale.chat.thinking import ThinkingPlan, constrained_by, constraint_of, plan
from maestrale.chat.tokenizer import Tokenizer
from maestrale.engines.base import Constraint, Engine, EngineInfo, GenerationRequest
from maestrale.errors import ConstraintError, InvalidRequest, Location, UnsupportedParameter
from maestrale.models.fim_tokens import KNOWN_MODELS
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.encode import PromptEncoder
from maestrale.prompt.messages import MESSAGES, EncodedPrompt
from maestrale.prompt.tools.grammar import argument_constraints

SEED_MASK = (1 << 64) - 1


class Vetter(Protocol):
    """Compiles a constraint where it can do no harm, and writes it down for the engine.

    Raises: ConstraintError.
    """

    def vet(self, constraint: Constraint, key: str = "-") -> Awaitable[Constraint]: ...


class ChatService:
    """Turns conversations and prompts into Answers, for one model on one engine."""

    def __init__(
        self,
        engine: Engine,
        encoder: PromptEncoder,
        vocabulary: Vocabulary,
        vetter: Vetter,
        *,
        seeds: random.Random | None = None,
        on_gap: Callable[[float], None] | None = None,
    ) -> None:
        """`seeds`: those of requests without one are drawn from it, see `drawn_from`."""
        self.engine = engine
        self.encoder = encoder
        self.vocabulary = vocabulary
        self.tokenizer = Tokenizer(encoder, vocabulary, lambda: self.context_length)
        self._vetter = vetter
        self._on_gap = on_gap
        self._seeds = seeds if seeds is not None else drawn_from(None)

    @property
    def info(self) -> EngineInfo:
        return self.engine.describe()

    @property
    def context_length(self) -> int:
        """Prompt and answer together, in tokens."""
        return self.info.context_length

    async def answer(self, asked: Asked, options: Options) -> Answer:
        """Prepare an answer: all of it is checked, and nothing runs yet.

        Raises: InvalidRequest and its kin (400).
        """
        begun = time.perf_counter()
        check_task(asked, self.info)
        if isinstance(asked, Inputs):
            answer = await self._embed(asked, options)
        elif isinstance(asked, Ranking):
            answer = self._pool(await self.tokenizer.encode_pairs(asked), options, ranks=True)
        elif isinstance(asked, Conversation):
            answer = await self._chat(asked, options)
        else:
            answer = await self._continue(asked, options)
        answer.timings.started = begun
        return answer

    async def _chat(self, conversation: Conversation, options: Options) -> Answer:
        """The answer to a conversation."""
        use, form = options.tools, self.encoder.tool_format
        if use is not None and form is None:
            raise UnsupportedParameter(
                TOOLS,
                " is not supported by this model: it has no chat template. Give one with "
                "--chat-template.",
                at=TOOLS,
            )
        thinking = plan(self.encoder, options)
        prompt = await self._encode(conversation, options, thinking)
        lead = conversation.messages[-1].text if conversation.continues else ""
        opened = thinking.form is not None and thinking.form.opened_by(prompt.text)
        constraint = constraint_of(thinking, form, options, opened=opened)
        held = structs.replace(options, constraint=constraint)
        at = constrained_by(options, thinking)
        check_options(held, self.info, at)
        formats = Formats(form, thinking.form, opened)
        answer = self._prepare([prompt.token_ids], held, [lead], MESSAGES, formats)
        if constraint is not None:
            answer.constrain(await self._vet(constraint, options, at))
        return answer

    async def prompt(self, conversation: Conversation, options: Options) -> EncodedPrompt:
        """The prompt that a conversation becomes, as `answer` would make it.

        Raises: InvalidRequest and its kin.
        """
        return await self._encode(conversation, options, plan(self.encoder, options))

    async def _encode(
        self, conversation: Conversation, options: Options, thinking: ThinkingPlan
    ) -> EncodedPrompt:
        return await self.tokenizer.encode_chat(
            conversation,
            tools=None if options.tools is None else options.tools.definitions,
            variables=thinking.variables,
        )

    async def _continue(self, asked: Prompts, options: Options) -> Answer:
        """The continuation of plain prompts: choices of the first come first."""
        special = options.add_special_tokens
        if asked.suffix is not None:
            options = self._until_a_mark(options)
            encode_fim, suffix = self.tokenizer.encode_fim, asked.suffix
            encoded = [await encode_fim(each, suffix, add_bos=special) for each in asked.prompts]
        else:
            encode = self.tokenizer.encode_prompt
            encoded = [await encode(prompt, add_bos=special) for prompt in asked.prompts]
        leads = [""] * len(encoded)
        if options.echo:
            leads = [
                prompt if isinstance(prompt, str) else self.tokenizer.plain(ids)
                for prompt, ids in zip(asked.prompts, encoded, strict=True)
            ]
        check_options(options, self.info, CONSTRAINT)
        answer = self._prepare(encoded, options, leads, PROMPT, Formats())
        if options.constraint is not None:
            vetted = await self._vet_alone(options.constraint, options.key, CONSTRAINT)
            answer.constrain(vetted)
        return answer

    async def _embed(self, asked: Inputs, options: Options) -> Answer:
        """The embeddings of texts, one for each."""
        check_dimensions(asked, self.info)
        special = options.add_special_tokens
        encoded = await self.tokenizer.encode_inputs(asked.inputs, add_special=special)
        return self._pool(encoded, options, dimensions=asked.dimensions)

    def _pool(
        self,
        encoded: Sequence[tuple[int, ...]],
        options: Options,
        *,
        dimensions: int | None = None,
        ranks: bool = False,
    ) -> Answer:
        """The answer that generates nothing, but has a vector of each prompt, or a score."""
        answer_id = secrets.token_hex(12)
        requests = tuple(
            GenerationRequest(
                request_id=f"{answer_id}-{index}",
                prompt=ids,
                max_tokens=0,
                seed=0,
                embed=True,
                share=options.key,
            )
            for index, ids in enumerate(encoded)
        )
        return Answer(
            answer_id=answer_id,
            engine=self.engine,
            vocabulary=self.vocabulary,
            requests=requests,
            options=options,
            prompt_tokens=sum(map(len, encoded)),
            seed=0,
            leads=[""] * len(requests),
            formats=Formats(),
            dimensions=dimensions,
            ranks=ranks,
        )

    def _until_a_mark(self, options: Options) -> Options:
        """What fills a gap ends at a mark, too. Raises: UnsupportedParameter without marks."""
        marks = self.encoder.fim_marks
        if marks is None:
            raise UnsupportedParameter(
                SUFFIX,
                " is not supported by this model: its vocabulary has no marks for filling in the "
                f"middle, as those of {KNOWN_MODELS} have. Without it a completion goes on from ",
                PROMPT,
                ".",
                at=SUFFIX,
            )
        if options.ignore_eos:
            return options
        return structs.replace(options, stop_token_ids=(*options.stop_token_ids, *marks.ends))

    async def _vet(self, constraint: Constraint, asked: Options, at: Location) -> Constraint:
        """The constraint, written down.

        Raises: InvalidRequest for what can't be compiled, naming what of the request it is.
        """
        if constraint == asked.constraint:
            return await self._vet_alone(constraint, asked.key, at)
        try:
            return await self._vetter.vet(constraint, asked.key)
        except ConstraintError as error:
            for index, alone in argument_constraints(asked.tools) if asked.tools else ():
                await self._vet_alone(alone, asked.key, TOOLS.at(index, "parameters"))
            if asked.constraint is not None:
                await self._vet_alone(asked.constraint, asked.key, CONSTRAINT)
            raise InvalidRequest(str(error), at=at) from error

    async def _vet_alone(self, constraint: Constraint, key: str, at: Location) -> Constraint:
        """The constraint, written down.

        Raises: InvalidRequest for one, from `at`, that can't be compiled.
        """
        try:
            return await self._vetter.vet(constraint, key)
        except ConstraintError as error:
            raise InvalidRequest(str(error), at=at) from error

    def _prepare(
        self,
        prompts: Sequence[tuple[int, ...]],
        options: Options,
        leads: Sequence[str],
        prompt_at: Location,
        formats: Formats,
    ) -> Answer:
        """The answer to encoded prompts. Raises: InvalidRequest and its kin."""
        size = len(self.vocabulary)
        check_token_ids(options.stop_token_ids, size, Location("stop_token_ids"))
        budgets = [
            room_for_answer(len(prompt), options, self.context_length, prompt_at)
            for prompt in prompts
        ]
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
            formats=formats,
        )


def drawn_from(seed: int | None) -> random.Random:
    """What draws the seeds of requests without one: by chance, or the same ones for each seed."""
    return random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice `choice` (0-based): the request's own for 0, derived for the others."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
