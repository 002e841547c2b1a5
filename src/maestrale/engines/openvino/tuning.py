"""The settings that suit this machine best: measured once, then kept beside the model.

Measuring loads the model several times over, so it happens in a process of its own
(`tuning_worker.py`). The quick form, at a model's first start, tries the forms of its weights;
`maestrale tune` also tries numbers of threads and sizes of a step. What the user sets is
never changed: only what was left open is tried.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from maestrale.engines.base import EngineConfig, WeightFormat
from maestrale.engines.openvino.cpu import available_cores, available_memory
from maestrale.engines.openvino.notes import note_key, recall, remember
from maestrale.errors import EngineError

Progress = Callable[[str, float | None], None]

NOTES = "tuning.json"
WEIGHT_FORMAT = "weight_format"
OPTIONS = frozenset({WEIGHT_FORMAT})  # settings that only this engine has
# Weights that take more memory than this at 8 bits are left as they are, unless asked otherwise.
SHARE_OF_MEMORY = 0.25
DEFAULT_STEP_TOKENS = 80  # larger products of 8-bit weights are a fifth slower on AVX2
DEFAULT_KV_CACHE = 1 << 30  # bytes


logger = logging.getLogger(__name__)


class Choice(Struct, frozen=True, kw_only=True):
    """A value for each setting that is tuned. `step_tokens`: the most tokens in a step."""

    threads: int
    weight_format: WeightFormat
    step_tokens: int
    kv_cache_bytes: int


class Measured(Struct, frozen=True, kw_only=True):
    """What a choice gave, in tokens/s: decode with 1, 8 and 32 sequences, and prefill."""

    choice: Choice
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
    best: Choice

    @property
    def gain(self) -> float:
        """The score of the best as a multiple of the default's."""
        scores = {entry.choice: entry.score for entry in self.measured}
        return scores[self.best] / self.measured[0].score


class Job(Struct, frozen=True, kw_only=True):
    """What the measuring process is asked for."""

    model_dir: str
    deterministic: bool
    choices: tuple[Choice, ...]
    rounds: int


class Step(Struct, frozen=True, tag=True):
    """From the measuring process: what it does now, and how far it is (0 to 1)."""

    phase: str
    fraction: float


class Done(Struct, frozen=True, tag=True):
    measured: tuple[Measured, ...]


class Refused(Struct, frozen=True, tag=True):
    reason: str


def tuned(config: EngineConfig, progress: Progress) -> EngineConfig:
    """`config` with what it leaves open filled in, measured if it never was on this machine.

    Raises: EngineError when the model can't be run at all.
    """
    known = _recall(config)
    if known is None and WEIGHT_FORMAT not in config.options and _worth_trying(config):
        first = chosen(config)
        known = _measured(config, (first, replace(first, weight_format="int8")), 2, progress)
        _keep(config, known)
        logger.info(
            "Measured on this machine: %s weights, %.2f times the speed of the original ones.",
            known.best.weight_format,
            known.gain,
        )
    choice = chosen(config, known)
    return replace(
        config,
        threads=choice.threads,
        options=config.options | {WEIGHT_FORMAT: choice.weight_format},
        max_num_batched_tokens=choice.step_tokens,
        kv_cache_bytes=choice.kv_cache_bytes,
    )


def chosen(config: EngineConfig, tuning: Tuning | None = None) -> Choice:
    """What `config` says; where it leaves something open what was found, or the default."""
    best = tuning.best if tuning else None
    return Choice(
        threads=config.threads or (best.threads if best else available_cores()),
        weight_format=_weight_format(config) or (best.weight_format if best else "original"),
        step_tokens=config.max_num_batched_tokens
        or (best.step_tokens if best else DEFAULT_STEP_TOKENS),
        kv_cache_bytes=config.kv_cache_bytes or (best.kv_cache_bytes if best else DEFAULT_KV_CACHE),
    )


def tune(config: EngineConfig, progress: Progress, rounds: int = 5) -> tuple[Tuning, bool]:
    """Measure all that is left open, and keep the result. Returns it, and whether it was kept.

    Raises: EngineError when the model can't be run.
    """
    first = replace(chosen(config), kv_cache_bytes=_kv_cache(config))
    choices = [first]
    for weight_format in _formats(config):
        for threads in _threads(config):
            for step in _steps(config):
                choice = replace(
                    first, threads=threads, weight_format=weight_format, step_tokens=step
                )
                if choice != first:
                    choices.append(choice)
    result = _measured(config, tuple(choices), rounds, progress)
    return result, _keep(config, result)


def _formats(config: EngineConfig) -> list[WeightFormat]:
    asked = _weight_format(config)
    if asked is not None:
        return [asked]
    return ["original", "int8"] if _worth_trying(config) else ["original"]


def _weight_format(config: EngineConfig) -> WeightFormat | None:
    return cast("WeightFormat | None", config.options.get(WEIGHT_FORMAT))


def _threads(config: EngineConfig) -> list[int]:
    if config.threads is not None:
        return [config.threads]
    cores = available_cores()
    return sorted({cores, max(1, cores - 1), max(1, cores // 2)}, reverse=True)


def _steps(config: EngineConfig) -> list[int]:
    """Deterministic mode has its own bound, which is measured when the model is loaded."""
    if config.max_num_batched_tokens is not None:
        return [config.max_num_batched_tokens]
    return [DEFAULT_STEP_TOKENS] if config.deterministic else [64, DEFAULT_STEP_TOKENS, 128, 256]


def _kv_cache(config: EngineConfig) -> int:
    """A quarter of the memory that is free, between a quarter of the default and 8 times it."""
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    share = int(available_memory() * SHARE_OF_MEMORY)
    return max(DEFAULT_KV_CACHE // 4, min(share, 8 * DEFAULT_KV_CACHE)) >> 20 << 20


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
    given = [config.threads, config.max_num_batched_tokens, _weight_format(config)]
    return note_key([available_cores(), config.deterministic, *given])


def _worth_trying(config: EngineConfig) -> bool:
    """Whether 8-bit weights fit easily, and can be kept."""
    weights = (Path(config.model_dir) / "openvino_model.bin").stat().st_size
    fits = 2 * weights < SHARE_OF_MEMORY * available_memory()
    return fits and os.access(config.model_dir, os.W_OK)


def _keep(config: EngineConfig, tuning: Tuning) -> bool:
    if config.kv_cache_bytes is not None:  # given for this start, and no finding
        tuning = Tuning(
            measured=tuple(
                replace(entry, choice=_with_default_cache(entry.choice))
                for entry in tuning.measured
            ),
            best=_with_default_cache(tuning.best),
        )
    return remember(_file(config), _key(config), msgspec.to_builtins(tuning))


def _with_default_cache(choice: Choice) -> Choice:
    return replace(choice, kv_cache_bytes=DEFAULT_KV_CACHE)


def _measured(
    config: EngineConfig, choices: tuple[Choice, ...], rounds: int, progress: Progress
) -> Tuning:
    job = Job(
        model_dir=config.model_dir,
        deterministic=config.deterministic,
        choices=choices,
        rounds=rounds,
    )
    measured = _run(job, progress)
    return Tuning(measured=measured, best=max(measured, key=lambda entry: entry.score).choice)


def _run(job: Job, progress: Progress) -> tuple[Measured, ...]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "maestrale.engines.openvino.tuning_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    decoder = msgspec.json.Decoder(Step | Done | Refused)
    try:
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
        for line in process.stdout:
            match decoder.decode(line):
                case Step(phase, fraction):
                    progress(phase, fraction)
                case Done(measured):
                    return measured
                case Refused(reason):
                    raise EngineError(reason)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    raise EngineError(
        f"Trying the engine's settings ended early (exit status {process.returncode}). "
        "Choose them yourself: --weight-format original."
    )
