"""The watchdog's judgement, with time given to it in numbers."""

from __future__ import annotations

import pytest

from maestrale.supervise.watchdog import Patience, Watchdog

PATIENCE = Patience()


def running(step_seconds: float = 0.01) -> Watchdog:
    watchdog = Watchdog(PATIENCE)
    watchdog.ready(step_seconds, 0)
    return watchdog


def judge(watchdog: Watchdog, seconds: float, **state: bool) -> str | None:
    """Let `seconds` pass, in ticks; the verdict, if there is one."""
    values = {"busy": True, "stopped": False, **state}
    for _ in range(int(seconds / 0.5)):
        verdict = watchdog.tick(0.5, **values)
        if verdict is not None:
            return verdict
    return None


def beat(watchdog: Watchdog, seconds: float, steps: list[int], busy: bool = True) -> str | None:
    """Let `seconds` pass with a heartbeat every half second; `steps` goes on by one each."""
    for count in range(int(seconds / 0.5)):
        verdict = watchdog.tick(0.5, busy=busy, stopped=False)
        if verdict is not None:
            return verdict
        watchdog.heartbeat(steps[min(count, len(steps) - 1)])
    return None


def test_silence_is_death_after_ten_seconds() -> None:
    assert judge(running(), 10, busy=False) is None
    assert "no sign of life" in str(judge(running(), 10.5, busy=False))


def test_a_busy_engine_without_steps_is_hung_after_ten_seconds() -> None:
    assert beat(running(), 10, [7]) is None
    assert "completed no step" in str(beat(running(), 11, [0]))


def test_an_idle_engine_needs_no_steps() -> None:
    assert beat(running(), 600, [0], busy=False) is None


def test_the_clock_of_a_step_starts_with_the_work() -> None:
    watchdog = running()
    assert beat(watchdog, 60, [0], busy=False) is None
    assert beat(watchdog, 10, [0]) is None
    assert beat(watchdog, 1, [0]) is not None


def test_five_times_the_step_measured_at_start() -> None:
    assert running(6.0).step_limit == 30
    assert beat(running(6.0), 30, [0]) is None
    assert beat(running(6.0), 31, [0]) is not None


def test_a_long_step_that_completes_makes_it_more_patient() -> None:
    watchdog = running()
    for step in range(1, 9):  # each step a second longer than the last
        assert beat(watchdog, 1.0 + step, [step - 1]) is None
        watchdog.heartbeat(step)
    assert watchdog.step_limit == pytest.approx(5 * 9.0)


def test_a_long_step_that_also_silences_the_heartbeat_is_waited_for() -> None:
    assert judge(running(6.0), 30) is None
    assert judge(running(6.0), 31) is not None


def test_time_in_which_others_had_the_cpu_does_not_count() -> None:
    watchdog = running()
    for _ in range(100):
        assert watchdog.tick(0.5, busy=True, stopped=False, starved=0.45) is None
    assert watchdog.tick(0.5, busy=True, stopped=False, starved=30.0) is None
    assert judge(watchdog, 10) is None, "what was waited is told in lumps"
    assert "completed no step" in str(judge(watchdog, 1))


def test_a_suspended_process_is_found_however_slow_its_steps_are() -> None:
    assert "suspended" in str(judge(running(600.0), 11, stopped=True))
    starting = Watchdog(PATIENCE)
    assert "suspended" in str(judge(starting, 11, stopped=True))


def test_loading_may_take_long_but_not_for_ever() -> None:
    starting = Watchdog(PATIENCE)
    assert judge(starting, 899, busy=False) is None
    assert "not ready" in str(judge(starting, 2, busy=False))


def test_the_engine_is_not_blamed_while_the_machine_slept() -> None:
    watchdog = running()
    for _ in range(5):
        assert watchdog.tick(3600.0, busy=True, stopped=False) is None
        watchdog.heartbeat(1)
