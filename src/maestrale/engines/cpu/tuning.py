"""The settings that suit this machine best: measured by `maestrale tune`, kept beside the model.

Threads and the size of a step are all that differs by machine. What the user sets is never
changed: only what was left open is tried. Without a measurement the defaults serve.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from maestrale.engines.base import EngineConfig
from maestrale.engines.cpu.decoder import Batch, Decoder
from maestrale.engines.cpu.kernel.build import library
from maestrale.engines.cpu.kv_cache import BLOCK_SIZE
from maestrale.engines.cpu.load import (
    LEVEL,
    fitting,
    introduce,
    kernel_cache,
    load,
    weights_of,
)
from maestrale.engines.cpu.model_files import spec_of
from maestrale.engines.cpu.notes import note_key, recall, remember
from maestrale.models.machine_limits import available_cores
from maestrale.models.store import Progress

NOTES = "tuning.json"
DEFAULT_STEP_TOKENS = 256
STEP_TOKENS = (256, 64, 128, 512)  # that are tried, the default first
AS_GOOD = 0.97  # of the best score: less than what measuring twice differs by
BLOCKS = 64  # of the KV cache: room for 32 short sequences, or the prompt
SHORT = 24  # tokens that a decoding sequence has behind it
PROMPT = 512  # tokens
SECONDS = 0.3  # how long one thing is measured in each round, at least
FEWEST = 3  # steps


class TunedValues(Struct, frozen=True, kw_only=True):
    """A value for each setting that is tuned. `step_tokens`: the most tokens in a step."""

    threads: int
    step_tokens: int


class Measured(Struct, frozen=True, kw_only=True):
    """What a choice gave, in tokens/s: decode with 1, 8 and 32 sequences, and prefill."""

    choice: TunedValues
    decode_1: float
    decode_8: float
    decode_32: float
    prefill: float

    @property
    def score(self) -> float:
        """The geometric mean of the four."""
        return float((self.decode_1 * self.decode_8 * self.decode_32 * self.prefill) ** 0.25)


class Tuning(Struct, frozen=True, kw_only=True):
    """All that was measured, the default first, and what was chosen."""

    measured: tuple[Measured, ...]
    best: TunedValues

    @property
    def gain(self) -> float:
        """The score of the best as a multiple of the default's."""
        scores = {entry.choice: entry.score for entry in self.measured}
        return scores[self.best] / self.measured[0].score


def tuned(config: EngineConfig, progress: Progress) -> EngineConfig:
    """`config` with what it leaves open taken from what was measured here, if anything was.

    What can't be served is refused here, before anything is loaded, and the kernel is there after
    it: made now, with progress, where it wasn't.

    Raises: ModelError, EngineError.
    """
    spec = spec_of(weights_of(config))
    fitting(config, spec)
    introduce(spec)
    library(kernel_cache(config), progress)
    choice = chosen(config, _recall(config))
    return replace(config, threads=choice.threads, max_num_batched_tokens=choice.step_tokens)


def chosen(config: EngineConfig, tuning: Tuning | None = None) -> TunedValues:
    """What `config` says; where it leaves something open what was found, or the default."""
    best = tuning.best if tuning else None
    return TunedValues(
        threads=config.threads or (best.threads if best else available_cores()),
        step_tokens=config.max_num_batched_tokens
        or (best.step_tokens if best else DEFAULT_STEP_TOKENS),
    )


def tune(config: EngineConfig, progress: Progress, rounds: int = 5) -> tuple[Tuning, bool]:
    """Measure all that is left open, and keep the result. Returns it, and whether it was kept.

    Raises: EngineError, ModelError when the model can't be run.
    """
    choices = _choices(config)
    rates: dict[TunedValues, dict[str, list[float]]] = {choice: {} for choice in choices}
    for threads in dict.fromkeys(choice.threads for choice in choices):
        those = [choice for choice in choices if choice.threads == threads]
        progress(f"Loading the model for {threads} threads", None)
        decoder = load(config, threads=threads, context=PROMPT)
        try:
            decoder.open_cache(BLOCKS)
            for number in range(rounds):  # in turn, so that a busy moment hits all alike
                progress(f"Measuring with {threads} threads", number / rounds)
                for choice in those:
                    for name, rate in _rates(decoder, choice):
                        rates[choice].setdefault(name, []).append(rate)
        finally:
            decoder.close()
    # The best, not the middle: whatever else the machine does only ever takes speed away.
    result = _best_of(
        tuple(
            Measured(choice=choice, **{name: max(values) for name, values in found.items()})
            for choice, found in rates.items()
        )
    )
    return result, remember(_file(config), _key(config), msgspec.to_builtins(result))


def _choices(config: EngineConfig) -> list[TunedValues]:
    """All that is to be tried, the default first."""
    cores = available_cores()
    threads = [config.threads] if config.threads else [cores, cores - 1, cores // 2]
    steps = [config.max_num_batched_tokens] if config.max_num_batched_tokens else STEP_TOKENS
    return [
        TunedValues(threads=count, step_tokens=step)
        for count in dict.fromkeys(threads)
        if count
        for step in steps
        if step
    ]


def _best_of(measured: tuple[Measured, ...]) -> Tuning:
    """The highest score; of sizes of a step that are as good, the first."""
    best = max(measured, key=lambda entry: entry.score)
    enough = max(AS_GOOD * best.score, measured[0].score)
    as_good = (
        entry.choice
        for entry in measured
        if entry.score >= enough and entry.choice.threads == best.choice.threads
    )
    return Tuning(measured=measured, best=next(as_good))


def _rates(decoder: Decoder, choice: TunedValues) -> list[tuple[str, float]]:
    """Tokens/s of each kind of step."""
    rates = []
    for count in (1, 8, 32):
        step = _decode_step(count, decoder.vocab_size)
        rates.append((f"decode_{count}", _rate(count, partial(decoder.step, step))))
    steps = [
        _prompt_step(start, min(choice.step_tokens, PROMPT - start), decoder.vocab_size)
        for start in range(0, PROMPT, choice.step_tokens)
    ]
    rates.append(("prefill", _rate(PROMPT, lambda: [decoder.step(step) for step in steps])))
    return rates


def _rate(tokens: int, work: Callable[[], object]) -> float:
    work()
    seconds: list[float] = []
    while len(seconds) < FEWEST or sum(seconds) < SECONDS:
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return tokens / min(seconds)


def _decode_step(sequences: int, vocab: int) -> Batch:
    """One token for each of `sequences`, whose earlier ones lie in a block of their own."""
    ones = np.arange(sequences + 1, dtype=np.int32)
    return Batch(
        token_ids=ones[1:] % vocab,
        past=np.full(sequences, SHORT, np.int32),
        begins=ones,
        blocks=ones[:-1],
        block_begins=ones,
        logit_rows=ones[:-1],
    )


def _prompt_step(start: int, count: int, vocab: int) -> Batch:
    """`count` tokens of one prompt from `start` on."""
    blocks = -(-(start + count) // BLOCK_SIZE)
    return Batch(
        token_ids=np.arange(1, count + 1, dtype=np.int32) % vocab,
        past=np.array([start], np.int32),
        begins=np.array([0, count], np.int32),
        blocks=np.arange(blocks, dtype=np.int32),
        block_begins=np.array([0, blocks], np.int32),
        logit_rows=np.array([count - 1], np.int32),
    )


def _recall(config: EngineConfig) -> Tuning | None:
    """What was found with the same settings given; else what was found with all of them open."""
    everything_open = replace(config, threads=None, max_num_batched_tokens=None, options={})
    for key in (_key(config), _key(everything_open)):
        try:
            return msgspec.convert(recall(_file(config), key), Tuning)
        except msgspec.ValidationError:
            continue  # nothing there, or of another version
    return None


def _file(config: EngineConfig) -> Path:
    return Path(config.model_dir) / NOTES


def _key(config: EngineConfig) -> str:
    given = [config.threads, config.max_num_batched_tokens, config.options.get(LEVEL)]
    return note_key([available_cores(), *given])
