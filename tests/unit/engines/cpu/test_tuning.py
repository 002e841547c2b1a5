"""What is chosen for a machine: never against the user, measured once, then remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from maestrale.engines.base import EngineConfig
from maestrale.engines.cpu.tuning import (
    NOTES,
    Measured,
    TunedValues,
    Tuning,
    _best_of,
    _choices,
    chosen,
    tune,
    tuned,
)
from maestrale.models.machine_limits import available_cores

OPEN = EngineConfig(engine="cpu", model_dir="")


def ignore(phase: str, fraction: float | None) -> None:
    """Progress that nobody looks at."""


def measured(step: int, speed: float, threads: int = 1) -> Measured:
    choice = TunedValues(threads=threads, step_tokens=step)
    return Measured(
        choice=choice, decode_1=speed, decode_8=speed, decode_32=speed, prefill=2 * speed
    )


def test_the_gain_is_told_against_the_default() -> None:
    slow, fast = measured(256, 10.0), measured(64, 15.0)
    assert Tuning(measured=(slow, fast), best=fast.choice).gain == pytest.approx(1.5)


def test_a_step_that_is_hardly_faster_does_not_replace_the_default() -> None:
    slow, first, near = measured(256, 5.0, threads=2), measured(256, 100.0), measured(128, 102.0)
    assert _best_of((slow, first, near)).best == first.choice
    assert _best_of((slow, first, near, measured(80, 110.0))).best.step_tokens == 80


def test_what_is_open_has_defaults() -> None:
    assert chosen(OPEN) == TunedValues(threads=available_cores(), step_tokens=256)


def test_what_the_user_set_goes_before_what_was_found() -> None:
    fast = measured(64, 15.0)
    found = Tuning(measured=(fast,), best=fast.choice)
    assert chosen(replace(OPEN, threads=7), found) == TunedValues(threads=7, step_tokens=64)
    assert chosen(replace(OPEN, max_num_batched_tokens=99), found).step_tokens == 99


def test_only_what_is_open_is_tried() -> None:
    given = replace(OPEN, threads=3, max_num_batched_tokens=99)
    assert _choices(given) == [TunedValues(threads=3, step_tokens=99)]
    every = _choices(OPEN)
    assert every[0] == chosen(OPEN)
    assert len(set(every)) == len(every) > 3


@pytest.mark.model
@pytest.mark.slow
def test_what_was_found_serves_until_the_user_says_otherwise(prepared_model: Path) -> None:
    config = replace(OPEN, model_dir=str(prepared_model))
    (prepared_model / NOTES).unlink(missing_ok=True)
    try:
        assert tuned(config, ignore).max_num_batched_tokens == 256
        result, kept = tune(replace(config, threads=1), ignore, rounds=1)
        assert kept
        found = tuned(replace(config, threads=1), ignore)
        assert found.max_num_batched_tokens == result.best.step_tokens
        other = tuned(replace(config, threads=1, max_num_batched_tokens=77), ignore)
        assert other.max_num_batched_tokens == 77
    finally:
        (prepared_model / NOTES).unlink(missing_ok=True)
