"""What is chosen for a machine: never against the user, measured once, then remembered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from maestrale.engines.base import EngineConfig, WeightFormat
from maestrale.engines.openvino import measuring, tuning
from maestrale.engines.openvino.cpu import available_cores
from maestrale.engines.openvino.measuring import Choice, FormatFailed, Measured
from maestrale.engines.openvino.tuning import Tuning, _best_of, _steps, chosen, tune, tuned
from maestrale.engines.openvino.weights import extension, forms
from maestrale.engines.openvino.weights.forms import left_out, repacked_folder, without_kernel
from maestrale.errors import EngineError

GIB = 1 << 30


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


def test_a_step_that_is_hardly_faster_does_not_replace_the_default() -> None:
    def step(tokens: int, speed: float) -> Measured:
        choice = measured("a8", speed).choice
        return replace(measured("a8", speed), choice=replace(choice, step_tokens=tokens))

    slow, first, near = measured("original", 5.0), step(256, 100.0), step(128, 102.0)
    assert _best_of((slow, first, near)).best == first.choice
    assert _best_of((slow, first, near, step(80, 110.0))).best.step_tokens == 80
    assert _best_of((measured("original", 109.0), step(256, 110.0))).best == first.choice


@pytest.mark.parametrize("form", ["original", "a8"])
def test_steps_are_tried_where_they_are_free(form: WeightFormat) -> None:
    config = EngineConfig(engine="openvino", model_dir="")
    one = [256] if form == "original" else [256, 64, 80, 128]
    assert _steps(config, form) == one
    assert len(_steps(replace(config, deterministic=False), form)) == 4
    assert _steps(replace(config, max_num_batched_tokens=99), form) == [99]


def test_what_is_open_has_defaults() -> None:
    choice = chosen(EngineConfig(engine="openvino", model_dir=""))
    assert choice.threads == available_cores()
    assert (choice.weight_format, choice.step_tokens) == ("original", 256)
    fast = EngineConfig(engine="openvino", model_dir="", deterministic=False)
    assert chosen(fast).step_tokens == 80
    assert chosen(replace(fast, options={"weight_format": "a8"})).step_tokens == 256


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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of 1 GiB, on a machine that has a compiler, and room for all."""
    monkeypatch.setattr(extension, "cpu_lacks", lambda: "")
    monkeypatch.setattr(tuning, "cpu_lacks", lambda: "")
    monkeypatch.setattr(forms, "available_memory", lambda: 64 * GIB)
    monkeypatch.setenv("CXX", "/bin/false")
    usage = shutil.disk_usage(tmp_path)._replace(free=64 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    folder = tmp_path / "model"
    folder.mkdir()
    with (folder / "openvino_model.bin").open("wb") as weights:
        weights.truncate(GIB)  # takes no room
    return folder


class Measuring:
    """In the place of the measuring process: the later a choice stands, the faster it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tried: list[set[str]] = []
        self.failing: set[str] = set()
        monkeypatch.setattr(tuning, "measure", self.measure)

    def measure(
        self, config: EngineConfig, choices: list[Choice], rounds: int, progress: object
    ) -> tuple[Measured, ...]:
        self.tried.append({choice.weight_format for choice in choices})
        if failed := self.failing & self.tried[-1]:
            raise FormatFailed(failed.pop(), "The compiler has no idea.")  # type: ignore[arg-type]
        if not rounds:
            return ()
        return tuple(
            Measured(choice=choice, decode_1=i, decode_8=i, decode_32=i, prefill=i)
            for i, choice in enumerate(choices, 1)
        )


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    return Measuring(monkeypatch)


def keep_a8(folder: Path) -> None:
    """As it lies there once it was made."""
    made = repacked_folder(folder, "a8")
    made.mkdir(mode=0o755)
    (made / "openvino_model.xml").touch()
    (made / f"projection-{extension.digest()}.so").touch(mode=0o755)


def weight_format(folder: Path, **given: object) -> str:
    config = EngineConfig(engine="openvino", model_dir=str(folder), **given)  # type: ignore[arg-type]
    return tuned(config, no_progress).options["weight_format"]


def test_the_first_start_tries_a8_where_it_can_be_had(folder: Path, measure: Measuring) -> None:
    assert weight_format(folder) == "a8"
    keep_a8(folder)
    assert weight_format(folder) == "a8"
    assert measure.tried == [{"original", "a8"}]


def test_without_a_compiler_it_says_so_once_and_tries_int8(
    folder: Path,
    measure: Measuring,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert weight_format(folder) == "int8"
    assert weight_format(folder) == "int8"
    assert measure.tried == [{"original", "int8"}]
    told = [record for record in caplog.records if "apt install g++" in record.getMessage()]
    assert [record.levelname for record in told] == ["WARNING"]
    # A compiler is there now: what was found without one doesn't count.
    monkeypatch.setenv("CXX", "/bin/false")
    assert weight_format(folder) == "a8"


def test_a_cpu_that_can_not_is_no_warning(
    folder: Path,
    measure: Measuring,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for module in (extension, tuning):
        monkeypatch.setattr(module, "cpu_lacks", lambda: "this CPU is of another age")
    assert weight_format(folder) == "int8"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with pytest.raises(EngineError, match="another age"):
        weight_format(folder, options={"weight_format": "a8"})


def test_a_compiler_that_fails_is_told_and_not_tried_again(
    folder: Path, measure: Measuring, caplog: pytest.LogCaptureFixture
) -> None:
    measure.failing.add("a8")
    assert weight_format(folder) == "int8"
    assert "The compiler has no idea." in caplog.text
    assert weight_format(folder) == "int8"
    assert measure.tried == [{"original", "a8"}, {"original", "int8"}]


def test_a_kernel_that_is_gone_is_made_again_or_done_without(
    folder: Path, measure: Measuring, caplog: pytest.LogCaptureFixture
) -> None:
    assert weight_format(folder) == "a8"
    assert weight_format(folder) == "a8"  # made again: it was not kept
    measure.failing.add("a8")
    assert weight_format(folder) == "original"
    assert "The compiler has no idea. Another form of the weights serves." in caplog.text
    measure.failing.clear()
    assert weight_format(folder) == "a8"
    assert measure.tried == [{"original", "a8"}, {"a8"}, {"a8"}, {"a8"}]


def test_a_shipped_kernel_needs_no_compiler(
    folder: Path, measure: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_a8(folder)
    monkeypatch.setenv("CXX", "gone")
    assert weight_format(folder) == "a8"


def test_a8_that_is_asked_for_and_can_not_be_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match=r"--weight-format a8 can't be used.*no-such-compiler"):
        weight_format(folder, options={"weight_format": "a8"})


def test_tune_tries_all_that_can_be_had_and_tells_of_the_rest(
    folder: Path, measure: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(engine="openvino", model_dir=str(folder), threads=1)
    result, kept, without = tune(config, no_progress)
    assert measure.tried.pop() == {"original", "int8", "a8"}
    assert (kept, without, result.best.weight_format) == (True, {}, "a8")
    measure.failing.add("a8")
    result, kept, without = tune(config, no_progress)
    assert without == {"a8": "The compiler has no idea."}
    assert result.best.weight_format == "int8"
    monkeypatch.setenv("CXX", "gone")
    _, _, without = tune(config, no_progress)
    assert "CXX names 'gone'" in without["a8"]
    assert measure.tried.pop() == {"original", "int8"}


def test_what_there_is_no_room_for_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert left_out(folder) == {}
    monkeypatch.setattr(forms, "available_memory", lambda: 7 * GIB)
    assert set(left_out(folder)) == {"int8"}  # twice the size for as long as it serves
    monkeypatch.setattr(forms, "available_memory", lambda: 5 * GIB)
    assert set(left_out(folder)) == {"int8", "a8"}
    monkeypatch.setattr(forms, "available_memory", lambda: 64 * GIB)
    usage = shutil.disk_usage(folder)._replace(free=GIB * 17 // 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert left_out(folder) == {"int8": f"there is too little room in {folder}"}
    monkeypatch.setattr(forms.os, "access", lambda path, mode: path != folder)
    assert "can't be written" in left_out(folder)["a8"]


def test_a_model_that_is_too_large_is_left_alone(
    folder: Path, measure: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "available_memory", lambda: 5 * GIB)
    assert weight_format(folder) == "original"
    assert measure.tried == []


def test_a_form_on_which_the_measuring_process_dies_is_the_one_to_do_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\ncat >/dev/null\nkill -SEGV $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(measuring.sys, "executable", str(dies))
    config = EngineConfig(engine="openvino", model_dir=str(folder))
    first = chosen(config)
    with pytest.raises(FormatFailed, match="exit status -11"):
        measuring.measure(config, (first, replace(first, weight_format="a8")), 1, no_progress)
    with pytest.raises(EngineError, match="--weight-format original"):
        measuring.measure(config, (first,), 1, no_progress)


def test_a_model_that_can_not_run_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    config = EngineConfig(engine="openvino", model_dir=str(tmp_path))
    with pytest.raises(EngineError, match="can't run the model"):
        tuned(config, lambda phase, fraction: None)
    assert not (tmp_path / "tuning.json").exists()


def test_a_start_with_flags_leaves_the_next_one_open(
    folder: Path, measure: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_a8(folder)
    small = EngineConfig(engine="openvino", model_dir=str(folder), kv_cache_bytes=1 << 20)
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
    ignored = shutil.ignore_patterns("int8*", "a8*", "tuning.json")
    shutil.copytree(prepared_model, folder, ignore=ignored)
    config = EngineConfig(engine="openvino", model_dir=str(folder), threads=1)
    phases: list[float | None] = []
    first = tuned(config, lambda phase, fraction: phases.append(fraction))
    other = "int8" if without_kernel(folder) else "a8"
    assert first.options["weight_format"] in ("original", other)
    assert first.threads == 1  # as it was set
    assert len(phases) > 3
    assert tuned(config, no_progress) == first
    # What is set needs no measuring, and stays.
    for given in ("original", "int8", other):
        config = EngineConfig(
            engine="openvino", model_dir=str(folder), options={"weight_format": given}
        )
        assert tuned(config, no_progress).options["weight_format"] == given


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
    result, kept, left = tune(open_steps, lambda phase, fraction: None, rounds=1)
    assert (kept, left) == (True, {})
    assert {entry.choice.step_tokens for entry in result.measured} == {64, 80, 128, 256}
    assert all(entry.choice.threads == 1 for entry in result.measured)
    assert result.gain >= 1
    assert tuned(open_steps, no_progress).max_num_batched_tokens == result.best.step_tokens
