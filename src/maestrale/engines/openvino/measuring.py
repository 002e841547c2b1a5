"""Measuring settings of the engine: what is asked of the measuring process, and its answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from maestrale.engines.base import EngineConfig, WeightFormat
from maestrale.errors import EngineError

Progress = Callable[[str, float | None], None]


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


class Job(Struct, frozen=True, kw_only=True):
    """What the measuring process is asked for. No rounds: only make and load the choices."""

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
    """Nothing was measured. `weight_format`: because of this form of the weights alone."""

    reason: str
    weight_format: WeightFormat | None = None


class FormatFailed(EngineError):
    """A form of the weights can't be made, loaded or run here, though it should."""

    def __init__(self, weight_format: WeightFormat, reason: str) -> None:
        super().__init__(reason)
        self.weight_format = weight_format


def measure(
    config: EngineConfig, choices: Sequence[Choice], rounds: int, progress: Progress
) -> tuple[Measured, ...]:
    """Have `choices` measured for the model of `config`, in turn, `rounds` times.

    Raises: FormatFailed for the form a8, when it is one of several; EngineError when the model
    can't be run at all.
    """
    job = Job(
        model_dir=config.model_dir,
        deterministic=config.deterministic,
        choices=tuple(choices),
        rounds=rounds,
    )
    return _run(job, progress)


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
                case Refused(reason, weight_format):
                    if weight_format is not None:
                        raise FormatFailed(weight_format, reason)
                    raise EngineError(reason)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    ended = f"Trying the engine's settings ended early (exit status {process.returncode})."
    if any(choice.weight_format == "a8" for choice in job.choices):
        raise FormatFailed("a8", ended)  # of all that it ran, this is what differs by machine
    raise EngineError(f"{ended} Choose them yourself: --weight-format original.")
