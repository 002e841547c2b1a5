"""Run as a module: measures settings of the engine. A `Job` on stdin, JSON lines on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from maestrale.engines.base import WeightFormat
from maestrale.engines.openvino.cpu import die_with_parent
from maestrale.engines.openvino.graph import PagedModel
from maestrale.engines.openvino.kv_cache import BLOCK_SIZE
from maestrale.engines.openvino.measuring import (
    Choice,
    Done,
    FormatFailed,
    Job,
    Measured,
    Refused,
    Step,
)
from maestrale.engines.openvino.step import StepInput
from maestrale.engines.openvino.weights.forms import RepackedFormat
from maestrale.engines.openvino.weights.repack import save_repacked
from maestrale.errors import EngineError, MaestraleError

KV_CACHE = 256 << 20  # bytes: room for 32 short sequences
SHORT = 24  # tokens that a decoding sequence has behind it
PROMPT = 256  # tokens
SEQUENCES = (1, 8, 32)
SECONDS = 0.3  # how long one thing is measured in each round, at least
FEWEST = 3  # steps
FORMS: dict[RepackedFormat, str] = {
    "a8": "Compiling the kernel for 8-bit activations, packing the weights (once)",
    "int8": "Repacking the weights to 8 bits (once)",
}

Result = TypeVar("Result")


def main() -> None:
    die_with_parent()
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        _send(Done(_measure(job)))
    except FormatFailed as error:
        _send(Refused(str(error), error.weight_format))
    except MaestraleError as error:
        _send(Refused(str(error)))


def _send(message: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _measure(job: Job) -> tuple[Measured, ...]:
    folder = Path(job.model_dir)
    for form, what in FORMS.items():
        if any(choice.weight_format == form for choice in job.choices):
            _send(Step(what, 0.0))
            _made(form, partial(save_repacked, folder, form))
    count = len(job.choices)
    rates: list[dict[str, list[float]]] = [{} for _ in job.choices]
    # Choices that differ only in the size of a step share one compiled model.
    groups: dict[tuple[str, int], list[int]] = {}
    for index, choice in enumerate(job.choices):
        groups.setdefault((choice.weight_format, choice.threads), []).append(index)
    models: dict[tuple[str, int], PagedModel] = {}
    for key, members in groups.items():
        choice = job.choices[members[0]]
        _send(Step(_phase(choice), len(models) / (2 * len(groups))))
        models[key] = _made(
            choice.weight_format,
            partial(
                PagedModel,
                folder,
                kv_cache_bytes=KV_CACHE,
                threads=choice.threads,
                deterministic=job.deterministic,
                weight_format=choice.weight_format,
            ),
        )
    if not job.rounds:
        return ()
    for number in range(job.rounds):  # in turn, so that a busy moment hits all alike
        for index, choice in enumerate(job.choices):
            done = 0.5 + (number + index / count) / (2 * job.rounds)
            _send(Step(_phase(choice), done))
            model = models[choice.weight_format, choice.threads]
            for name, rate in _rates(model, choice):
                rates[index].setdefault(name, []).append(rate)
    # The best, not the middle: whatever else the machine does only ever takes speed away.
    return tuple(
        Measured(choice=choice, **{name: max(values) for name, values in found.items()})
        for choice, found in zip(job.choices, rates, strict=True)
    )


def _made(form: WeightFormat, make: Callable[[], Result]) -> Result:
    """What `make` makes. Raises: FormatFailed when the form's kernel is what fails."""
    try:
        return make()
    except EngineError as error:
        raise FormatFailed(form, str(error)) from error


def _phase(choice: Choice) -> str:
    return (
        f"Measuring what is fastest here (once): {choice.weight_format} weights, "
        f"{choice.threads} threads"
    )


def _rates(model: PagedModel, choice: Choice) -> list[tuple[str, float]]:
    """Tokens/s of each kind of step."""
    rates = [
        (f"decode_{count}", _rate(count, partial(model.infer, _decode_step(count, model))))
        for count in SEQUENCES
    ]
    most = min(choice.step_tokens, model.exact_step_tokens or choice.step_tokens, PROMPT)
    starts = range(0, PROMPT, most)

    def prefill() -> None:
        for start in starts:
            model.infer(_prompt_step(start, min(most, PROMPT - start), model))

    rates.append(("prefill", _rate(PROMPT, prefill)))
    return rates


def _rate(tokens: int, work: Callable[[], object]) -> float:
    work()
    seconds: list[float] = []
    while len(seconds) < FEWEST or sum(seconds) < SECONDS:
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return tokens / min(seconds)


def _decode_step(sequences: int, model: PagedModel) -> StepInput:
    """One token for each of `sequences`, whose earlier ones lie in a block of their own."""
    ones = np.arange(sequences + 1, dtype=np.int32)
    return StepInput(
        token_ids=np.arange(1, sequences + 1) % model.vocab_size,
        positions=np.full(sequences, SHORT),
        past_lens=np.full(sequences, SHORT, np.int32),
        sequence_begins=ones,
        block_indices=ones[:-1],
        block_begins=ones,
        logit_rows=np.arange(sequences),
        max_context_len=SHORT + 1,
    )


def _prompt_step(start: int, count: int, model: PagedModel) -> StepInput:
    """`count` tokens of one prompt from `start` on."""
    blocks = -(-(start + count) // BLOCK_SIZE)
    return StepInput(
        token_ids=np.arange(1, count + 1) % model.vocab_size,
        positions=np.arange(start, start + count),
        past_lens=np.array([start], np.int32),
        sequence_begins=np.array([0, count], np.int32),
        block_indices=np.arange(blocks, dtype=np.int32),
        block_begins=np.array([0, blocks], np.int32),
        logit_rows=np.array([count - 1]),
        max_context_len=start + count,
    )


if __name__ == "__main__":
    main()
