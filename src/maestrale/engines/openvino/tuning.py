"""The settings that suit this machine best: measured once, then kept beside the model.

Measuring loads the model several times over, so it happens in a process of its own
(`tuning_worker.py`). The quick form, at a model's first start, tries the forms of its weights;
`maestrale tune` also tries numbers of threads and sizes of a step. What the user sets is
never changed: only what was left open is tried. A form that can't be had here is left out, and
the user is told why.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from maestrale.engines.base import EngineConfig, WeightFormat
from maestrale.engines.openvino.cpu import available_cores, available_memory
from maestrale.engines.openvino.measuring import (
    Choice,
    FormatFailed,
    Measured,
    Progress,
    measure,
)
from maestrale.engines.openvino.notes import note_key, recall, remember
from maestrale.engines.openvino.weights.extension import cpu_lacks, digest, kept, refusal
from maestrale.engines.openvino.weights.forms import (
    RepackedFormat,
    left_out,
    repacked_folder,
    without_kernel,
)

NOTES = "tuning.json"
WEIGHT_FORMAT = "weight_format"
OPTIONS = frozenset({WEIGHT_FORMAT})  # settings that only this engine has
SHARE_OF_MEMORY = 0.25  # that is free, for the KV cache
# Attention is quicker over many tokens. Deterministic steps are cut down to what is exact.
DEFAULT_STEP_TOKENS = 256
FAST_STEP_TOKENS = 80  # OpenVINO's own larger products of 8-bit weights are slower on AVX2
DEFAULT_KV_CACHE = 1 << 30  # bytes
AS_GOOD = 0.97  # of the best score: less than what measuring twice differs by

logger = logging.getLogger(__name__)


class Tuning(Struct, frozen=True, kw_only=True):
    """All that was measured, the default first, and what was chosen."""

    measured: tuple[Measured, ...]
    best: Choice

    @property
    def gain(self) -> float:
        """The score of the best as a multiple of the default's."""
        scores = {entry.choice: entry.score for entry in self.measured}
        return scores[self.best] / self.measured[0].score


def tuned(config: EngineConfig, progress: Progress) -> EngineConfig:
    """`config` with what it leaves open filled in, measured if it never was on this machine.

    Raises: EngineError when the model can't be run at all, or not with the weights asked for.
    """
    folder = Path(config.model_dir)
    asked = _weight_format(config)
    if asked == "a8" and (reason := without_kernel(folder)):
        raise refusal(reason)
    known = _recall(config)
    if known is None and asked is None:
        known = _measured_first(config, progress)
    elif known is not None and asked is None:
        if known.best.weight_format == "a8":
            known = _still_there(config, known, progress)
        logger.info("Serving with the %s weights, by measurement.", known.best.weight_format)
    choice = chosen(config, known)
    return replace(
        config,
        threads=choice.threads,
        options=config.options | {WEIGHT_FORMAT: choice.weight_format},
        max_num_batched_tokens=choice.step_tokens,
        kv_cache_bytes=choice.kv_cache_bytes,
    )


def _measured_first(config: EngineConfig, progress: Progress) -> Tuning | None:
    """The quick form; None where there is nothing to choose from."""
    folder = Path(config.model_dir)
    if reason := without_kernel(folder):
        logger.log(
            logging.INFO if cpu_lacks() else logging.WARNING,
            "Prompts and batches can take half the time with 8-bit activations "
            "(--weight-format a8), but %s.",
            reason,
        )
    reasons = left_out(folder)
    first = chosen(config)
    others: tuple[WeightFormat, ...] = ("a8", "int8")
    for other in others:
        if other in reasons:
            continue
        try:
            found = measure(config, (first, _with_format(config, first, other)), 2, progress)
        except FormatFailed as error:
            logger.warning(
                "%s Serving with another form of the weights; 'maestrale tune' tries this one "
                "again.",
                error,
            )
            continue
        known = _best_of(found)
        _keep(config, known)
        logger.info(
            "Measured on this machine: %s weights, %.2f times the speed of the original ones.",
            known.best.weight_format,
            known.gain,
        )
        return known
    return None


def _still_there(config: EngineConfig, known: Tuning, progress: Progress) -> Tuning:
    """`known`, whose best has the form a8, if that can still be had; else with the next best."""
    folder = repacked_folder(Path(config.model_dir), "a8")
    if kept(folder) is not None and (folder / "openvino_model.xml").is_file():
        return known
    try:
        measure(config, (known.best,), 0, progress)
    except FormatFailed as error:
        rest = tuple(entry for entry in known.measured if entry.choice.weight_format != "a8")
        known = _best_of(rest)
        logger.warning("%s Another form of the weights serves.", error)
    return known


def chosen(config: EngineConfig, tuning: Tuning | None = None) -> Choice:
    """What `config` says; where it leaves something open what was found, or the default."""
    best = tuning.best if tuning else None
    weight_format = _weight_format(config) or (best.weight_format if best else "original")
    return Choice(
        threads=config.threads or (best.threads if best else available_cores()),
        weight_format=weight_format,
        step_tokens=config.max_num_batched_tokens
        or (best.step_tokens if best else _default_step(config, weight_format)),
        kv_cache_bytes=config.kv_cache_bytes or (best.kv_cache_bytes if best else DEFAULT_KV_CACHE),
    )


def tune(
    config: EngineConfig, progress: Progress, rounds: int = 5
) -> tuple[Tuning, bool, dict[RepackedFormat, str]]:
    """Measure all that is left open, and keep the result.

    Returns it, whether it was kept, and the forms that could not be tried, with the reasons.
    Raises: EngineError when the model can't be run.
    """
    reasons = {} if _weight_format(config) else left_out(Path(config.model_dir))
    try:
        found = measure(config, _choices(config, reasons), rounds, progress)
    except FormatFailed as error:
        if _weight_format(config):
            raise
        reasons["a8"] = str(error)
        found = measure(config, _choices(config, reasons), rounds, progress)
    result = _best_of(found)
    return result, _keep(config, result), reasons


def _choices(config: EngineConfig, without: dict[RepackedFormat, str]) -> list[Choice]:
    """All that is to be tried, the default first."""
    first = replace(chosen(config), kv_cache_bytes=_kv_cache(config))
    asked = _weight_format(config)
    every: tuple[WeightFormat, ...] = (asked,) if asked else ("original", "int8", "a8")
    choices = [first]
    for weight_format in every:
        if weight_format in without:
            continue
        for threads in _threads(config):
            for step in _steps(config, weight_format):
                choice = replace(
                    first, threads=threads, weight_format=weight_format, step_tokens=step
                )
                if choice != first:
                    choices.append(choice)
    return choices


def _weight_format(config: EngineConfig) -> WeightFormat | None:
    return cast("WeightFormat | None", config.options.get(WEIGHT_FORMAT))


def _threads(config: EngineConfig) -> list[int]:
    if config.threads is not None:
        return [config.threads]
    cores = available_cores()
    return sorted({cores, max(1, cores - 1), max(1, cores // 2)}, reverse=True)


def _default_step(config: EngineConfig, weight_format: WeightFormat) -> int:
    ours = config.deterministic or weight_format == "a8"
    return DEFAULT_STEP_TOKENS if ours else FAST_STEP_TOKENS


def _with_format(config: EngineConfig, choice: Choice, weight_format: WeightFormat) -> Choice:
    step = config.max_num_batched_tokens or _default_step(config, weight_format)
    return replace(choice, weight_format=weight_format, step_tokens=step)


def _steps(config: EngineConfig, weight_format: WeightFormat) -> list[int]:
    """The default first. Deterministic mode bounds the other forms' steps when it is loaded."""
    if config.max_num_batched_tokens is not None:
        return [config.max_num_batched_tokens]
    default = _default_step(config, weight_format)
    if config.deterministic and weight_format != "a8":
        return [default]
    return sorted({64, 80, 128, 256}, key=lambda step: (step != default, step))


def _kv_cache(config: EngineConfig) -> int:
    """A quarter of the memory that is free, between a quarter of the default and 8 times it."""
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    share = int(available_memory() * SHARE_OF_MEMORY)
    return max(DEFAULT_KV_CACHE // 4, min(share, 8 * DEFAULT_KV_CACHE)) >> 20 << 20


def _best_of(measured: tuple[Measured, ...]) -> Tuning:
    """The highest score; of sizes of a step that are as good, the first: long prompts like it."""
    best = max(measured, key=lambda entry: entry.score)
    enough = max(AS_GOOD * best.score, measured[0].score)
    as_good = (
        entry.choice
        for entry in measured
        if entry.score >= enough
        and replace(entry.choice, step_tokens=best.choice.step_tokens) == best.choice
    )
    return Tuning(measured=measured, best=next(as_good))


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
    """Findings without the form a8, or with another kernel of it, are none where it can be had."""
    kernel = "" if without_kernel(Path(config.model_dir)) else digest()
    given = [config.threads, config.max_num_batched_tokens, _weight_format(config)]
    return note_key([available_cores(), config.deterministic, *given, kernel])


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
