"""What is chosen for a machine: never against the user, measured once, then remembered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from maestrale.engines.base import EngineConfig
from maestrale.engines.openvino import tuning
from maestrale.engines.openvino.cpu import available_cores
from maestrale.engines.openvino.tuning import Choice, Measured, Tuning, chosen, tune, tuned
from maestrale.errors import EngineError


def no_progress(phase: str, fraction: float | None) -> None:
    raise AssertionError(f"measured, though it need not be: {phase}")


def measured(weight_format: str, speed: float) -> Measured:
    choice = Choice(threads=1, weight_format=weight_format, step_tokens=64, kv_cache_bytes=1 << 28)  # type: ignore[arg-type]
    return Measured(
        choice=choice, decode_1=speed, decode_8=speed, decode_32=speed, prefill=2 * speed
    )


def test_the_gain_is_told_against_the_default() -> None:
    slow, fast = measured("original", 10.0), measured("int8", 15.0)
    assert Tuning(measured=(slow, fast), best=fast.choice).gain == pytest.approx(1.5)


def test_what_is_open_has_defaults() -> None:
    choice = chosen(EngineConfig(engine="openvino", model_dir=""))
    assert choice.threads == available_cores()
    assert (choice.weight_format, choice.step_tokens) == ("original", 80)


def test_what_the_user_set_goes_before_what_was_found() -> None:
    fast = measured("int8", 15.0)
    found = Tuning(measured=(fast,), best=fast.choice)
    config = EngineConfig(
        engine="openvino",
        model_dir="",
        options={"weight_format": "original"},
        threads=7,
        kv_cache_bytes=123,
    )
    choice = chosen(config, found)
    assert (choice.weight_format, choice.threads, choice.kv_cache_bytes) == ("original", 7, 123)
    assert choice.step_tokens == 64  # left open: as found


def test_a_model_too_large_for_8_bits_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(b"x" * 1000)
    monkeypatch.setattr(tuning, "available_memory", lambda: 4000)
    config = EngineConfig(engine="openvino", model_dir=str(tmp_path))
    assert tuned(config, no_progress).options["weight_format"] == "original"


def test_a_model_that_can_not_run_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    config = EngineConfig(engine="openvino", model_dir=str(tmp_path))
    with pytest.raises(EngineError, match="can't run the model"):
        tuned(config, lambda phase, fraction: None)
    assert not (tmp_path / "tuning.json").exists()


def test_a_start_with_flags_leaves_the_next_one_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(b"x" * 1000)

    def run(job: tuning.Job, progress: object) -> tuple[Measured, ...]:
        return tuple(
            Measured(choice=choice, decode_1=i, decode_8=i, decode_32=i, prefill=i)
            for i, choice in enumerate(job.choices, 1)
        )

    monkeypatch.setattr(tuning, "_run", run)
    small = EngineConfig(engine="openvino", model_dir=str(tmp_path), kv_cache_bytes=1 << 20)
    assert tuned(small, no_progress).kv_cache_bytes == 1 << 20
    plain = replace(small, kv_cache_bytes=None)
    assert tuned(plain, no_progress).kv_cache_bytes == tuning.DEFAULT_KV_CACHE
    monkeypatch.setattr(tuning, "available_cores", lambda: 2)
    one_thread = replace(plain, threads=1)
    tuned(one_thread, no_progress)
    assert tuned(plain, no_progress).threads == 2


@pytest.mark.model
@pytest.mark.slow
def test_it_is_measured_once_and_then_remembered(prepared_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(prepared_model, folder, ignore=shutil.ignore_patterns("int8*", "tuning.json"))
    config = EngineConfig(engine="openvino", model_dir=str(folder), threads=1)
    phases: list[float | None] = []
    first = tuned(config, lambda phase, fraction: phases.append(fraction))
    assert first.options["weight_format"] in ("original", "int8")
    assert first.threads == 1  # as it was set
    assert len(phases) > 3
    assert tuned(config, no_progress) == first
    # What is set needs no measuring, and stays.
    both = {"original", "int8"}
    (other,) = both - {first.options["weight_format"]}
    config = EngineConfig(
        engine="openvino", model_dir=str(folder), options={"weight_format": other}
    )
    assert tuned(config, no_progress).options["weight_format"] == other


@pytest.mark.model
@pytest.mark.slow
def test_tune_measures_all_that_is_open(prepared_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(prepared_model, folder, ignore=shutil.ignore_patterns("tuning.json"))
    open_steps = EngineConfig(
        engine="openvino",
        model_dir=str(folder),
        options={"weight_format": "original"},
        threads=1,
        deterministic=False,
    )
    result, kept = tune(open_steps, lambda phase, fraction: None, rounds=1)
    assert kept
    assert {entry.choice.step_tokens for entry in result.measured} == {64, 80, 128, 256}
    assert all(entry.choice.threads == 1 for entry in result.measured)
    assert result.gain >= 1
    assert tuned(open_steps, no_progress).max_num_batched_tokens == result.best.step_tokens
