"""The scripted engine: no model, same protocol, and it crashes, hangs and dawdles on cue.

Its tokens are a hash of the request, so they are the same in any batch and any process, as a
deterministic engine's must be. Tests of everything above the engine run on it.

`EngineConfig.options` (all values are strings):

    text / tokens        what each answer says: a text, or a JSON list of token ids
    length               tokens before the natural end; default: 8 to 64, by the request's hash
    tokens_per_second    pace of each sequence; default: as fast as it goes
    tokens_per_step      of each sequence; default: 1
    step_seconds         each step blocks the process for so long, as a slow model's does
    start_seconds        how long `start` takes
    fail_start           the message that it fails with
    fail_start_while     a file while which exists it fails
    crash_at_token       the process kills itself before this token (0 is the first)
    hang_at_token        the process stops for good before this token
    lose_at_token        the step loop raises before this token: the whole engine is lost
    lose_idle_after      seconds after the start at which the engine is lost, with no request in it
    helper               it starts a process of its own, which would live for a minute
    crash_on_prompt      only prompts with this token id crash, hang or lose the engine
                         (at the first token, unless one of the above says which)
    refuse_on_prompt     prompts with this token id get an EngineError, the engine goes on
    marker, times        a file that counts the above accidents: after `times` no more of them
    nondeterministic     tokens differ between processes, and the engine says so
    fingerprint          in place of its own;  "random": another in each process

With GPUs that Ray reserved on several nodes it has an actor on each (scripted_actors.py), and is
lost with any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import get_args

from maestrale.engines.base import (
    CALIBRATION_ID,
    EngineConfig,
    EngineHealth,
    EngineInfo,
    EngineStats,
    Feature,
    FinishReason,
    GenerationRequest,
    ReservedGpus,
    StepTokens,
    TokenDelta,
    TokenLogprob,
)
from maestrale.engines.mailbox import Mailbox
from maestrale.errors import EngineDied, EngineError, SettingsError
from maestrale.models.vocabulary import Vocabulary

OPTIONS = {
    *("text", "tokens", "length", "tokens_per_second", "tokens_per_step", "step_seconds"),
    *("start_seconds", "fail_start", "fail_start_while", "crash_at_token", "hang_at_token"),
    *("lose_at_token", "lose_idle_after", "helper"),
    *("crash_on_prompt", "refuse_on_prompt", "marker", "times", "nondeterministic"),
    "fingerprint",
}
BYTES_PER_TOKEN = 1024  # of the pretended KV cache
BYTE_EOS = 256
CLOSERS = frozenset(b'"}],:')


def byte_vocabulary() -> Vocabulary:
    """The vocabulary used without a model folder: 256 bytes, and 256 ends the text."""
    token_bytes = (*(bytes([value]) for value in range(256)), b"")
    return Vocabulary(token_bytes, {"</s>": BYTE_EOS}, (BYTE_EOS,))


class ScriptedEngine:
    """An Engine whose answers are hashes. See the module's text for what it can be told."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises: SettingsError for an option that it doesn't know."""
        unknown = sorted(set(config.options) - OPTIONS)
        if unknown:
            raise SettingsError(
                f"The scripted engine has no option {', '.join(unknown)}. "
                f"It knows: {', '.join(sorted(OPTIONS))}."
            )
        self._config = config
        self._max_num_seqs = config.max_num_seqs or 64
        self._kv_cache_bytes = config.kv_cache_bytes or 1 << 30
        self._options = config.options
        self._script = _Script(config.options)
        self._tokens_per_step = int(config.options.get("tokens_per_step", "1"))
        self._vocabulary = byte_vocabulary()
        self._info: EngineInfo | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._waiting: list[_Sequence] = []
        self._running: list[_Sequence] = []
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
        context_length = 4096
        if self._config.model_dir:
            from maestrale.models.prepared import load_prepared
            from maestrale.models.vocabulary import load_vocabulary

            folder = Path(self._config.model_dir)
            self._vocabulary = load_vocabulary(folder)
            context_length = load_prepared(folder).context_length
        self._script.learn(self._vocabulary)
        features = frozenset(get_args(Feature)) - {"prefix_cache"}
        if self._script.salt:
            features -= {"deterministic"}
        self._info = EngineInfo(
            engine="scripted",
            version="1",
            fingerprint=self._fingerprint(),
            max_model_len=self._config.max_model_len or context_length,
            vocab_size=len(self._vocabulary),
            kv_capacity_tokens=max(1, self._kv_cache_bytes // BYTES_PER_TOKEN),
            max_num_seqs=self._max_num_seqs,
            features=features,
        )
        self._loop_task = asyncio.create_task(self._step_loop())
        if "helper" in self._options:
            await asyncio.create_subprocess_exec("sleep", "60")
        if "lose_idle_after" in self._options and self._script.still_to_happen():
            after = float(self._options["lose_idle_after"])
            asyncio.get_running_loop().call_later(after, self._lose, "lost, as the script says")

    async def _hold(self, reserved: ReservedGpus) -> None:
        from maestrale.engines.scripted_actors import hold

        loop = asyncio.get_running_loop()

        def lost() -> None:
            loop.call_soon_threadsafe(self._lose, "an actor on one of its GPUs is gone")

        await asyncio.to_thread(hold, reserved, lost)

    def _fingerprint(self) -> str:
        told = self._options.get("fingerprint", "")
        if told == "random":
            return f"scripted-{os.getpid()}"
        return told or f"scripted-{_digest(repr(self._vocabulary.eos_token_ids)).hex()[:12]}"

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
        if len(request.prompt) >= min(info.max_model_len, info.kv_capacity_tokens):
            raise EngineError(
                f"The prompt has {len(request.prompt)} tokens; this engine holds "
                f"{min(info.max_model_len, info.kv_capacity_tokens)} with the answer."
            )
        if self._options.get("refuse_on_prompt", "") in [str(token) for token in request.prompt]:
            raise EngineError("The script refuses this prompt.")
        sequence = _Sequence(request, self._vocabulary, self._script, info.max_model_len)
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


class _Script:
    """What the options say of every answer, and of accidents."""

    def __init__(self, options: dict[str, str]) -> None:
        self._options = options
        self.salt = str(os.getpid()) if options.get("nondeterministic") else ""
        self.length = int(options["length"]) if "length" in options else None
        self.said: tuple[int, ...] | None = None
        self.words: tuple[int, ...] = ()

    def learn(self, vocabulary: Vocabulary) -> None:
        spelled = list(enumerate(vocabulary.token_bytes))
        if "tokens" in self._options:
            self.said = tuple(json.loads(self._options["tokens"]))
        elif "text" in self._options:
            self.said = tuple(_spell(self._options["text"].encode(), spelled))
        self.words = tuple(i for i, b in spelled if b and b.isascii() and _word(b))

    def may_start(self) -> None:
        """Raises: EngineError when it shall not start."""
        if "fail_start" in self._options:
            raise EngineError(self._options["fail_start"])
        if Path(self._options.get("fail_start_while", "/")).is_file():
            raise EngineError("The script says not to start now.")

    def accident(self, prompt: tuple[int, ...], generated: int) -> None:
        """Crash, hang or fail, if the script says so for this prompt at this token."""
        target = self._options.get("crash_on_prompt")
        if target is not None and int(target) not in prompt:
            return
        places = {kind: self._options.get(f"{kind}_at_token") for kind in ("crash", "hang", "lose")}
        if target is not None and not any(places.values()):
            places["crash"] = "0"
        for kind, place in places.items():
            if place is not None and int(place) == generated and self.still_to_happen():
                _ACCIDENTS[kind]()

    def still_to_happen(self) -> bool:
        if "marker" not in self._options:
            return True
        marker = Path(self._options["marker"])
        happened = marker.stat().st_size if marker.exists() else 0
        if happened >= int(self._options.get("times", "1")):
            return False
        with marker.open("ab") as file:
            file.write(b".")
        return True


def _crash() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)  # as faulty native code ends; SIGKILL comes from outside


def _hang() -> None:
    while True:
        time.sleep(3600)


def _lose() -> None:
    raise EngineDied("the script said so")


_ACCIDENTS = {"crash": _crash, "hang": _hang, "lose": _lose}


class _Sequence:
    """One request on its way."""

    def __init__(
        self,
        request: GenerationRequest,
        vocabulary: Vocabulary,
        script: _Script,
        max_model_len: int,
    ) -> None:
        self.request = request
        self.mailbox = Mailbox()
        self.generated: list[int] = []
        self.finished = False
        self.arrived = time.monotonic()
        self.waited = 0.0  # seconds until it was let in
        self._vocabulary = vocabulary
        self._script = script
        self._limit = min(request.max_tokens, max_model_len - len(request.prompt))
        seed = request.seed if request.sampling.temperature > 0 else 0
        self._key = _digest(f"{request.prompt}{seed}{request.sampling.temperature}{script.salt}")
        self._length = script.length
        if self._length is None:
            said = script.said
            self._length = len(said) if said is not None else 8 + self._draw(-1) % 57
        self._bias = dict(request.sampling.logit_bias)
        self._wanted = max(self._bias, key=self._bias.__getitem__, default=None)
        self._constraint = None
        if request.constraint is not None:
            from maestrale.engines.constraint import compile_constraint

            self._constraint = compile_constraint(request.constraint, vocabulary)

    @property
    def held(self) -> int:
        """Tokens in the pretended KV cache now."""
        return len(self.request.prompt) + len(self.generated)

    @property
    def most_held(self) -> int:
        return len(self.request.prompt) + self._limit

    def advance(self) -> TokenDelta:
        """Choose the next token."""
        position = len(self.generated)
        if not self.request.max_tokens:
            return TokenDelta((), "length", waited=self.waited, prompt_logprobs=self._of_prompt())
        forced = self.request.forced
        token = forced[position] if position < len(forced) else self._choose(position)
        if self._constraint is not None:
            self._constraint.accept(token)
        self.generated.append(token)
        return TokenDelta(
            (token,),
            self._finished(token),
            self._logprobs(token, position, self.request.logprobs),
            waited=0.0 if position else self.waited,
            prompt_logprobs=None if position else self._of_prompt(),
        )

    def _choose(self, position: int) -> int:
        may_stop = position >= self.request.min_tokens
        stops = self.request.stop_token_ids if may_stop else ()
        if self._constraint is not None:
            return self._choose_allowed(position)
        if stops and position >= (self._length or 0):
            return stops[0]
        if self._wanted is not None and self._bias[self._wanted] >= 100:
            return self._wanted
        said = self._script.said
        if said:
            return said[position % len(said)]
        words = self._script.words
        for attempt in range(64):
            token = words[self._draw(position, attempt) % len(words)]
            banned = not may_stop and token in self.request.stop_token_ids
            if not banned and self._bias.get(token, 0) > -100:
                return token
        return words[self._draw(position) % len(words)]

    def _choose_allowed(self, position: int) -> int:
        """One of the tokens that the grammar allows; half the time one that closes something."""
        assert self._constraint is not None
        allowed = [int(i) for i in self._constraint.allowed().nonzero()[0]]
        spelled = self._vocabulary.token_bytes
        ends = [i for i in allowed if i in self._vocabulary.eos_token_ids]
        if ends and position >= self.request.min_tokens:
            return ends[0]
        plain = [i for i in allowed if spelled[i] and spelled[i].isascii()] or allowed
        closers = [i for i in plain if spelled[i] and spelled[i][-1] in CLOSERS]
        draw = self._draw(position)
        choice = closers if closers and draw % 2 else plain
        return choice[draw // 2 % len(choice)]

    def _finished(self, token: int) -> FinishReason | None:
        if len(self.generated) > self.request.min_tokens or self._constraint is not None:
            if token in self.request.stop_token_ids:
                return "stop"
            if self._constraint is not None and self._constraint.finished:
                return "stop"
        return "length" if len(self.generated) >= self._limit else None

    def _of_prompt(self) -> tuple[TokenLogprob, ...] | None:
        top = self.request.prompt_logprobs
        if top is None:
            return None
        of_each = (
            self._logprobs(token, -2 - place, top)
            for place, token in enumerate(self.request.prompt[1:])
        )
        return tuple(entry for entries in of_each for entry in entries or ())

    def _logprobs(
        self, token: int, position: int, top: int | None
    ) -> tuple[TokenLogprob, ...] | None:
        if top is None:
            return None
        best = -0.01 - self._draw(position, 1000) % 100 / 100
        others = [i for i in range(top + 1) if i != token]
        ranked = [(token, best), *((i, best - 1 - n) for n, i in enumerate(others))]
        return (TokenLogprob(token, best, tuple(ranked[:top])),)

    def _draw(self, position: int, attempt: int = 0) -> int:
        message = position.to_bytes(8, "big", signed=True) + attempt.to_bytes(2, "big")
        hashed = hashlib.blake2b(message, key=self._key, digest_size=8)
        return int.from_bytes(hashed.digest(), "big")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def _word(spelling: bytes) -> bool:
    return all(byte == 0x20 or 0x61 <= byte <= 0x7A for byte in spelling)


def _spell(text: bytes, spelled: Iterable[tuple[int, bytes]]) -> list[int]:
    """`text` as tokens, the longest that fits first."""
    ids: dict[bytes, int] = {}
    for token, spelling in spelled:
        if spelling:
            ids.setdefault(spelling, token)
    longest = max(map(len, ids))
    tokens: list[int] = []
    while text:
        for size in range(min(longest, len(text)), 0, -1):
            if text[:size] in ids:
                tokens.append(ids[text[:size]])
                text = text[size:]
                break
        else:
            raise SettingsError("The scripted text can't be spelled with this vocabulary.")
    return tokens


__all__ = ["BYTE_EOS", "ScriptedEngine", "byte_vocabulary"]
