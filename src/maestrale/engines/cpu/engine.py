"""The CPU engine: one thread steps the model, one event loop talks to the readers.

The thread owns the model, the scheduler and every running sequence. The event loop hands it
new and abandoned requests through an inbox, which is read before each step, and gets back all
that a step produced in one call. Constraints are compiled on a thread of their own, so that a
large one holds nobody up.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maestrale import __version__
from maestrale.engines import constraint as constraints
from maestrale.engines.base import (
    Constraint,
    EngineConfig,
    EngineHealth,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    StepTokens,
    Task,
    TokenDelta,
)
from maestrale.engines.constraint import TokenConstraint, compile_constraint
from maestrale.engines.cpu.decoder import Decoder
from maestrale.engines.cpu.forecast import DEFAULT_MAX_NUM_SEQS, embedding_size, features_of
from maestrale.engines.cpu.generation import Generation
from maestrale.engines.cpu.kv_cache import BLOCK_SIZE
from maestrale.engines.cpu.load import OPTIONS, fitting, load, weights_of
from maestrale.engines.cpu.model_files import spec_of
from maestrale.engines.cpu.prompt_lookup import PromptLookup
from maestrale.engines.cpu.scheduler import Scheduler
from maestrale.engines.cpu.scoring import Scorer, check_reranker, scorer_of
from maestrale.engines.cpu.sequence import Chunk
from maestrale.engines.cpu.step import step_input
from maestrale.engines.cpu.tuning import chosen
from maestrale.engines.requests import check_request
from maestrale.engines.task import pooling_of, task_of
from maestrale.errors import ConstraintError, EngineDied, EngineError, ModelError
from maestrale.models.pooling import Pooling
from maestrale.models.prepared import load_prepared
from maestrale.models.vocabulary import Vocabulary, load_vocabulary

IDLE_AFTER = 0.25  # seconds without work, before what would hold a request up is done
LARGE_PAGE = 2 << 20  # bytes of weights that come into large pages at a time: at worst in 6 ms
COMPILED_CONSTRAINTS = 32  # kept for the next request with the same one
NICENESS = 5  # of the thread that compiles: who waits for tokens goes first

logger = logging.getLogger(__name__)

_Order = tuple[Literal["add", "abort"], Generation]
_Result = tuple[Generation, TokenDelta | ConstraintError]


class CPUEngine:
    """An Engine on the CPU. See `engines/base.py` for what each method promises."""

    def __init__(self, config: EngineConfig) -> None:
        unknown = config.options.keys() - OPTIONS
        if unknown:
            names = ", ".join(sorted(unknown))
            raise EngineError(f"The cpu engine can't use {names}: remove it.")
        self._config = config
        self._max_num_seqs = config.max_num_seqs or DEFAULT_MAX_NUM_SEQS
        self._choice = chosen(config)
        self._info: EngineInfo | None = None
        self._dead = ""
        self._closing = False
        self._task: Task
        self._pooling: Pooling
        self._scorer: Scorer | None = None
        self._vocabulary: Vocabulary
        self._decoder: Decoder
        self._scheduler: Scheduler
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self._compiler = ThreadPoolExecutor(
            1, thread_name_prefix="constraints", initializer=_give_way
        )
        self._compiled: collections.OrderedDict[Constraint, TokenConstraint] = (
            collections.OrderedDict()
        )
        # The inbox, guarded by its condition.
        self._inbox_filled = threading.Condition()
        self._inbox: list[_Order] = []
        self._stopped = False
        # On the event loop only.
        self._active: set[Generation] = set()
        self._drained = asyncio.Event()
        self._drained.set()
        # Written by the step thread only.
        self._steps = self._prompt_tokens = self._generation_tokens = 0
        self._draft_tokens = self._accepted_tokens = 0
        self._busy_until = 0.0
        self._indexed = False  # the vocabulary, for constraints
        self._small_pages = 1  # bytes of weights that lie in such, or may
        self._step_tokens = StepTokens()

    async def start(self) -> None:
        """Load the model, and start stepping.

        Raises: ModelError for a folder that can't be served; EngineError for settings that
        this model or the KV cache can't meet.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._load)
        self._thread.start()

    def _load(self) -> None:
        config = self._config
        prepared = load_prepared(Path(config.model_dir))
        self._task, self._pooling = task_of(config, prepared), pooling_of(prepared)
        self._vocabulary = load_vocabulary(Path(config.model_dir))
        spec = spec_of(weights_of(config))
        check_reranker(self._task, spec, prepared, self._vocabulary)
        size = fitting(config, spec)
        self._decoder = load(config, threads=self._choice.threads, context=size.max_model_len)
        if self._decoder.vocab_size != len(self._vocabulary):
            raise ModelError(
                f"The model has {self._decoder.vocab_size} logits, its tokenizer "
                f"{len(self._vocabulary)} tokens: they don't belong together."
            )
        if self._task == "rerank":
            self._scorer = scorer_of(self._decoder, prepared, self._vocabulary)
        self._decoder.open_cache(size.blocks)
        if not config.deterministic:
            logger.info("--no-deterministic changes nothing: this engine gains no speed by it.")
        self._scheduler = Scheduler(
            size.blocks,
            max_num_seqs=self._max_num_seqs,
            max_num_batched_tokens=self._choice.step_tokens,
            prefix_caching=config.enable_prefix_caching,
        )
        if self._scheduler.max_running < self._max_num_seqs:
            logger.warning(
                "Of the %d sequences of --max-num-seqs, a step has room for %d.",
                self._max_num_seqs,
                self._scheduler.max_running,
            )
        self._info = self._describe(size.max_model_len)

    def _describe(self, max_model_len: int) -> EngineInfo:
        return EngineInfo(
            engine="cpu",
            version=__version__,
            fingerprint=self._fingerprint(),
            max_model_len=max_model_len,
            vocab_size=len(self._vocabulary),
            kv_capacity_tokens=self._scheduler.blocks.num_blocks * BLOCK_SIZE,
            max_num_seqs=self._scheduler.max_running,
            max_num_batched_tokens=self._choice.step_tokens,
            features=features_of(self._config),
            kv_block_tokens=BLOCK_SIZE,
            step_seconds=self._decoder.step_seconds(self._choice.step_tokens),
            task=self._task,
            embedding_size=embedding_size(self._task, self._decoder.spec),
        )

    def _fingerprint(self) -> str:
        """Of all that an answer's bytes depend on; not of the CPU, threads or batch."""
        parts = [
            self._decoder.arithmetic,
            self._decoder.identity,
            __version__,
            constraints.VERSION,
        ]
        return "fp_" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    async def close(self, grace: float = 0.0) -> None:
        """Refuse new requests, let the others finish for up to `grace` seconds, free all."""
        self._closing = True
        if not self._dead:
            try:
                await asyncio.wait_for(self._drained.wait(), grace)
            except TimeoutError:
                logger.info("Ending %d unfinished requests.", len(self._active))
        with self._inbox_filled:
            self._stopped = True
            self._inbox_filled.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        self._compiler.shutdown(wait=False, cancel_futures=True)
        self._lose("The engine was closed.")

    async def health(self) -> EngineHealth:
        if self._dead:
            return EngineHealth("dead", self._dead)
        if self._closing:
            return EngineHealth("draining")
        return EngineHealth("ready" if self._info else "starting")

    def describe(self) -> EngineInfo:
        """What this engine can do. Raises: EngineError before `start` is done."""
        if self._info is None:
            raise EngineError("The engine has not started yet.")
        return self._info

    def stats(self) -> EngineStats:
        if self._info is None:
            return EngineStats()
        scheduler = self._scheduler
        blocks = scheduler.blocks
        arriving = sum(1 for kind, _ in list(self._inbox) if kind == "add")
        return EngineStats(
            steps=self._steps,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + arriving,
            kv_cache_usage=blocks.in_use / blocks.num_blocks,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            preemptions=scheduler.preemptions,
            prefix_cache_queries=scheduler.prefix_queries,
            prefix_cache_hits=scheduler.prefix_hits,
            draft_tokens=self._draft_tokens,
            accepted_tokens=self._accepted_tokens,
            step_tokens=self._step_tokens.counts,
            step_tokens_sum=self._step_tokens.sum,
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """Generate tokens for one request; leaving the iterator aborts it before the next step.

        Raises: EngineError when it doesn't fit this engine, ConstraintError when its constraint
        can't be compiled or leads nowhere, EngineDied when the engine is lost or closing.
        """
        self._check(request)
        compiled = None
        if request.constraint is not None:
            compiled = await self._compile(request.constraint)
        self._check_alive()
        generation = Generation(
            request,
            compiled,
            self._vocabulary.eos_token_ids,
            PromptLookup(),
            self._pooling,
            self._scorer,
        )
        self._active.add(generation)
        self._drained.clear()
        self._order("add", generation)
        finished = False
        try:
            async for delta in generation.mailbox:
                finished = delta.finish_reason is not None
                yield delta
        finally:
            self._active.discard(generation)
            if not self._active:
                self._drained.set()
            if not finished:
                self._order("abort", generation)

    def _check_alive(self) -> None:
        if self._dead:
            raise EngineDied(self._dead)
        if self._closing:
            raise EngineDied("The engine is closing.")

    def _check(self, request: GenerationRequest) -> None:
        """Raises: EngineDied, EngineError when the request can't be run here."""
        info = self.describe()
        self._check_alive()
        check_request(request, info)

    async def _compile(self, constraint: Constraint) -> TokenConstraint:
        def compiled() -> TokenConstraint:
            known = self._compiled.pop(constraint, None)
            pristine = known or compile_constraint(constraint, self._vocabulary)
            self._compiled[constraint] = pristine
            if len(self._compiled) > COMPILED_CONSTRAINTS:
                self._compiled.popitem(last=False)
            return pristine.copy()

        return await asyncio.get_running_loop().run_in_executor(self._compiler, compiled)

    def _order(self, kind: Literal["add", "abort"], generation: Generation) -> None:
        with self._inbox_filled:
            self._inbox.append((kind, generation))
            self._inbox_filled.notify()

    # What follows up to `_deliver` runs on the step thread.

    def _run(self) -> None:
        self._busy_until = time.monotonic()
        try:
            while self._take_orders():
                chunks = self._scheduler.schedule()
                if chunks and (results := self._step(chunks)):
                    self._loop.call_soon_threadsafe(self._deliver, results)
                if not self._indexed and not chunks:
                    self._index_vocabulary()
                elif self._small_pages:
                    self._small_pages = self._decoder.enlarge_pages(LARGE_PAGE)
        except Exception as error:
            logger.exception("A step failed.")
            reason = f"The engine failed: {type(error).__name__} in a step."
            self._loop.call_soon_threadsafe(self._lose, reason)

    def _take_orders(self) -> bool:
        """Read the inbox, waiting while there is nothing to do; False: stop."""
        scheduler = self._scheduler
        with self._inbox_filled:
            while not (self._inbox or self._stopped or scheduler.running or scheduler.waiting):
                pause = None
                if not self._indexed or self._small_pages:
                    pause = self._busy_until + IDLE_AFTER - time.monotonic()
                    if pause <= 0:
                        break
                self._inbox_filled.wait(pause)
            orders, self._inbox = self._inbox, []
            stopped = self._stopped
        for kind, generation in orders:
            if kind == "add":
                scheduler.add(generation)
                self._prompt_tokens += generation.prompt_length
            else:
                scheduler.remove(generation)
        return not stopped

    def _step(self, chunks: list[Chunk]) -> list[_Result]:
        """Run one step of the model; returns what it produced."""
        wanting = [(chunk, chunk.wanted_rows, chunk.wants_logits) for chunk in chunks]
        step = step_input(chunks)
        for source, target in self._scheduler.take_copies():
            self._decoder.copy_block(source, target)
        begun = time.perf_counter()
        logits, hidden = self._decoder.step_both(step)
        self._scheduler.cost.learn(len(step.token_ids), time.perf_counter() - begun)
        self._scheduler.commit(chunks)
        results: list[_Result] = []
        for chunk, wanted, advances in wanting:
            generation, count = _generation(chunk), len(wanted) + len(chunk.drafts)
            if generation.embeds:
                rows, hidden = hidden[:count], hidden[count:]
            else:
                rows, logits = logits[:count], logits[count:]
            of_prompt = len(wanted) - advances
            if of_prompt:
                take = generation.pool if generation.embeds else generation.score
                take(rows[:of_prompt])
            if advances and generation.embeds:
                results.append((generation, generation.embedding(rows[-1])))
                self._scheduler.finish(generation)
            elif advances:
                results += self._advance(chunk, rows[of_prompt:])
            else:
                read = TokenDelta((), prefilled=chunk.sequence.computed)
                results.append((generation, read))
        self._generation_tokens += sum(
            len(result.token_ids) for _, result in results if isinstance(result, TokenDelta)
        )
        self._step_tokens.add(len(step.token_ids))
        self._steps += 1
        self._busy_until = time.monotonic()
        return results

    def _advance(self, chunk: Chunk, rows: NDArray[np.float32]) -> list[_Result]:
        """Choose tokens from `rows` [1 + drafts, vocab] for as long as the guesses were right."""
        generation = _generation(chunk)
        results: list[_Result] = []
        right = 0
        for row, guess in zip(rows, (*chunk.drafts, None), strict=True):
            try:
                delta = generation.advance(row)
            except ConstraintError as error:
                self._scheduler.remove(generation)
                results.append((generation, error))
                break
            results.append((generation, delta))
            if delta.finish_reason is not None:
                self._scheduler.finish(generation)
                break
            if delta.token_ids != (guess,):
                break
            # The guess is a token now, and its keys and values lie in the cache.
            generation.computed += 1
            right += 1
        if chunk.drafts:
            generation.learn(len(chunk.drafts), right)
            self._draft_tokens += len(chunk.drafts)
            self._accepted_tokens += right
        return results

    def _index_vocabulary(self) -> None:
        """For constraints: it would hold others up, so it is done while nobody waits."""
        constraints.index(self._vocabulary)
        self._indexed = True

    # On the event loop again.

    def _deliver(self, results: Sequence[_Result]) -> None:
        for generation, result in results:
            if isinstance(result, TokenDelta):
                generation.mailbox.put(result)
            else:
                generation.mailbox.fail(result)

    def _lose(self, reason: str) -> None:
        """Nothing more will come: tell every reader."""
        if not self._dead:
            self._dead = reason
        for generation in self._active:
            generation.mailbox.fail(EngineDied(self._dead))


def _give_way() -> None:
    """Let other threads have the cores first."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _generation(chunk: Chunk) -> Generation:
    assert isinstance(chunk.sequence, Generation)
    return chunk.sequence
