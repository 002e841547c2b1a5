"""The step loop of the scripted engine, and its pretended batch and KV cache."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from msgspec.structs import replace

from maestrale.engines.base import (
    CALIBRATION_ID,
    EngineConfig,
    EngineHealth,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    ReservedGpus,
    StepTokens,
    TokenDelta,
)
from maestrale.engines.requests import check_embedding
from maestrale.engines.scripted.answers import Script, ScriptedSequence, digest
from maestrale.engines.scripted.forecast import (
    KV_CACHE_BYTES,
    MAX_NUM_SEQS,
    foreseen_info,
)
from maestrale.errors import EngineDied, EngineError, SettingsError
from maestrale.models.vocabulary import byte_vocabulary

OPTIONS = {
    *("text", "tokens", "replies", "length"),
    *("tokens_per_second", "tokens_per_step", "step_seconds"),
    *("start_seconds", "fail_start", "fail_start_while", "crash_at_token", "hang_at_token"),
    *("lose_at_token", "lose_idle_after", "helper"),
    *("crash_on_prompt", "refuse_on_prompt", "marker", "times", "nondeterministic"),
    "fingerprint",
}


class ScriptedEngine:
    """An Engine whose answers are hashes. The package's text says what it can be told."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises: SettingsError for an option that it doesn't know."""
        unknown = sorted(set(config.options) - OPTIONS)
        if unknown:
            raise SettingsError(
                f"The scripted engine has no option {', '.join(unknown)}. "
                f"It knows: {', '.join(sorted(OPTIONS))}."
            )
        self._config = config
        self._max_num_seqs = config.max_num_seqs or MAX_NUM_SEQS
        self._kv_cache_bytes = config.kv_cache_bytes or KV_CACHE_BYTES
        self._options = config.options
        self._script = Script(config.options)
        self._tokens_per_step = int(config.options.get("tokens_per_step", "1"))
        self._vocabulary = byte_vocabulary()
        self._info: EngineInfo | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._waiting: list[ScriptedSequence] = []
        self._running: list[ScriptedSequence] = []
        self._dead = ""
        self._steps = self._prompt_tokens = self._generation_tokens = 0
        self._step_tokens = StepTokens()

    async def start(self) -> None:
        """Load the vocabulary, if a model folder is given.

        Raises: EngineError when the script says so; ModelError for an unreadable folder.
        """
        await asyncio.sleep(float(self._options.get("start_seconds", "0")))
        self._script.may_start()
        if self._config.reserved is not None:
            await self._hold(self._config.reserved)
        if self._config.model_dir:
            from maestrale.models.vocabulary import load_vocabulary

            self._vocabulary = load_vocabulary(Path(self._config.model_dir))
        self._script.learn(self._vocabulary)
        plain = foreseen_info(self._config, len(self._vocabulary))
        features = plain.features - ({"deterministic"} if self._script.salt else set())
        self._info = replace(plain, features=features, fingerprint=self._fingerprint())
        self._loop_task = asyncio.create_task(self._step_loop())
        if "helper" in self._options:
            await asyncio.create_subprocess_exec("sleep", "60")
        if "lose_idle_after" in self._options and self._script.still_to_happen():
            after = float(self._options["lose_idle_after"])
            asyncio.get_running_loop().call_later(after, self._lose, "lost, as the script says")

    async def _hold(self, reserved: ReservedGpus) -> None:
        from maestrale.engines.scripted.actors import hold

        loop = asyncio.get_running_loop()

        def lost() -> None:
            loop.call_soon_threadsafe(self._lose, "an actor on one of its GPUs is gone")

        await asyncio.to_thread(hold, reserved, lost)

    def _fingerprint(self) -> str:
        told = self._options.get("fingerprint", "")
        if told == "random":
            return f"scripted-{os.getpid()}"
        return told or f"scripted-{digest(repr(self._vocabulary.eos_token_ids)).hex()[:12]}"

    async def close(self, grace: float = 0.0) -> None:
        """Let running requests finish for up to `grace` seconds, then end the rest."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), grace)
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self._lose("the engine was closed")

    async def health(self) -> EngineHealth:
        if self._dead:
            return EngineHealth("dead", self._dead)
        return EngineHealth("ready" if self._info else "starting")

    def describe(self) -> EngineInfo:
        if self._info is None:
            raise EngineError("The engine has not started yet.")
        return self._info

    def stats(self) -> EngineStats:
        capacity = self._info.kv_capacity_tokens if self._info else 1
        return EngineStats(
            steps=self._steps,
            running=len(self._running),
            waiting=len(self._waiting),
            kv_cache_usage=min(1.0, sum(seq.held for seq in self._running) / capacity),
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            step_tokens=self._step_tokens.counts,
            step_tokens_sum=self._step_tokens.sum,
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """Generate the request's tokens; leaving the iterator frees its place.

        Raises: EngineError when it doesn't fit, EngineDied when the engine is lost.
        """
        info = self.describe()
        if self._dead:
            raise EngineDied(self._dead)
        check_embedding(request, info)
        room = 0 if request.embed else 1
        if len(request.prompt) + room > min(info.max_model_len, info.kv_capacity_tokens):
            raise EngineError(
                f"The prompt has {len(request.prompt)} tokens; this engine holds "
                f"{min(info.max_model_len, info.kv_capacity_tokens)} with the answer."
            )
        if self._options.get("refuse_on_prompt", "") in [str(token) for token in request.prompt]:
            raise EngineError("The script refuses this prompt.")
        sequence = ScriptedSequence(
            *(request, self._vocabulary, self._script, info.max_model_len),
            ranks=info.task == "rerank",
        )
        self._waiting.append(sequence)
        self._drained.clear()
        self._wake.set()
        try:
            async for delta in sequence.mailbox:
                yield delta
        finally:
            for queue in (self._waiting, self._running):
                if sequence in queue:
                    queue.remove(sequence)
            if not self._waiting and not self._running:
                self._drained.set()

    async def _step_loop(self) -> None:
        rate = self._options.get("tokens_per_second")
        pause = 1 / float(rate) if rate else 0.0
        try:
            while True:
                if not self._running and not self._waiting:
                    self._wake.clear()
                    await self._wake.wait()
                self._admit()
                self._step()
                await asyncio.sleep(pause)
        except EngineDied as error:
            self._lose(str(error))

    def _admit(self) -> None:
        capacity = self.describe().kv_capacity_tokens
        held = sum(sequence.most_held for sequence in self._running)
        self._waiting.sort(key=lambda sequence: sequence.request.priority)  # stable
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting[0]
            if self._running and held + sequence.most_held > capacity:
                return
            held += sequence.most_held
            self._prompt_tokens += len(sequence.request.prompt)
            sequence.waited = time.monotonic() - sequence.arrived
            self._running.append(self._waiting.pop(0))

    def _step(self) -> None:
        blocked = self._options.get("step_seconds")
        if blocked:
            time.sleep(float(blocked))
        computed = 0
        for sequence in tuple(self._running) * self._tokens_per_step:
            if sequence.finished:
                continue
            if sequence.request.request_id != CALIBRATION_ID:
                self._script.accident(sequence.request.prompt, len(sequence.generated))
            computed += 1 if sequence.generated else len(sequence.request.prompt)
            delta = sequence.advance()
            self._generation_tokens += len(delta.token_ids)
            sequence.mailbox.put(delta)
            if delta.finish_reason is not None:
                sequence.finished = True
                self._running.remove(sequence)
        self._step_tokens.add(computed)
        self._steps += 1

    def _lose(self, reason: str) -> None:
        self._dead = reason
        for sequence in (*self._running, *self._waiting):
            sequence.mailbox.fail(EngineDied(f"The scripted engine is gone: {reason}."))
