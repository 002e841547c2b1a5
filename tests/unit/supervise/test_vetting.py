"""Constraints are judged in processes that can be lost; nothing else notices."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from msgspec import structs

from maestrale.engines import constraint as constraints
from maestrale.engines.base import Constraint
from maestrale.engines.constraint import compile_constraint, grammar_text
from maestrale.errors import ConstraintError, Unavailable
from maestrale.models.vocabulary import byte_vocabulary
from maestrale.supervise.vetting import ConstraintVetter, VettingLimits

from .conftest import SCHEMA, alive, until

pytestmark = pytest.mark.anyio

StartVetter = Callable[..., ConstraintVetter]


@pytest.fixture
async def start_vetter(anyio_backend: str) -> AsyncIterator[StartVetter]:
    vetters: list[ConstraintVetter] = []

    def start(model_dir: str = "", **limits: float) -> ConstraintVetter:
        vetters.append(ConstraintVetter(model_dir, VettingLimits(**limits)))  # type: ignore[arg-type]
        return vetters[-1]

    yield start
    pids = [pid for vetter in vetters for pid in vetter.pids]
    for vetter in vetters:
        await vetter.close()
        assert vetter.pids == []
    assert not [pid for pid in pids if alive(pid)]


SLOW = Constraint(
    "json_schema",
    json.dumps({"anyOf": [{"type": "string", "pattern": f".*{n}.*"} for n in range(500)]}),
)


def regex(text: str) -> Constraint:
    return Constraint("regex", text)


async def test_good_and_bad_are_told_apart(start_vetter: StartVetter) -> None:
    vetter = start_vetter()
    assert vetter.pids == [], "no process before the first constraint"
    await vetter.vet(SCHEMA)
    await vetter.vet(Constraint("grammar", 'start: "yes" | "no"'))
    await vetter.vet(regex("(a+)+b"))
    for bad in (regex("(["), Constraint("json_schema", "{"), Constraint("grammar", "start: x")):
        with pytest.raises(ConstraintError):
            await vetter.vet(bad)
    assert len(vetter.pids) == 1, "one process did all that"


async def test_both_verdicts_are_remembered(start_vetter: StartVetter) -> None:
    vetter = start_vetter()
    for _ in range(2):
        await vetter.vet(SCHEMA)
        with pytest.raises(ConstraintError):
            await vetter.vet(regex("(["))
        for pid in vetter.pids:
            os.kill(pid, signal.SIGSTOP)  # from now on only memory can answer


async def test_the_memory_of_verdicts_is_bounded(start_vetter: StartVetter) -> None:
    vetter = start_vetter(cached=8)
    for count in range(30):
        await vetter.vet(regex(f"a{{{count}}}"))
    assert len(vetter._known) == 8


async def test_of_what_is_written_so_much_is_remembered(start_vetter: StartVetter) -> None:
    vetter = start_vetter(cached_text=400)
    for count in range(10):
        vetted = await vetter.vet(regex(f"a{{{count}}}"))
    length = len(vetted.written)
    assert length > 40, "a few of them fit"
    assert len(vetter._known) == 400 // length
    assert vetter._text == length * len(vetter._known)


@pytest.mark.parametrize(
    "constraint",
    [SCHEMA, regex("a+"), Constraint("grammar", "start: <[256]> args", (("args", SCHEMA.value),))],
)
async def test_the_engine_is_spared_the_writing(
    start_vetter: StartVetter, constraint: Constraint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes back compiles to the same, without its schemas being read again."""
    vetter = start_vetter()
    for _ in range(2):  # known the second time
        vetted = await vetter.vet(constraint)
        assert vetted == structs.replace(constraint, written=grammar_text(constraint))
    before = compile_constraint(constraint, byte_vocabulary()).allowed()
    monkeypatch.setattr(constraints, "rules", None)
    after = compile_constraint(vetted, byte_vocabulary()).allowed()
    assert (before == after).all()


async def test_one_that_takes_too_long_is_refused_and_its_process_gone(
    start_vetter: StartVetter,
) -> None:
    vetter = start_vetter(time=0.3)
    await vetter.vet(regex("a"))
    (pid,) = vetter.pids
    for _ in range(2):  # the second time from memory
        with pytest.raises(ConstraintError, match=r"took longer than 0\.3 s to compile"):
            await vetter.vet(SLOW)
    assert not alive(pid)
    await vetter.vet(regex("b"))


async def test_a_suspended_process_calls_nothing_too_slow(start_vetter: StartVetter) -> None:
    vetter = start_vetter(time=0.4)
    await vetter.vet(regex("a"))
    (pid,) = vetter.pids
    os.kill(pid, signal.SIGSTOP)
    await vetter.vet(regex("b"))
    assert not alive(pid)


async def test_where_every_process_is_suspended_nothing_is_said_of_the_constraint(
    start_vetter: StartVetter, monkeypatch: pytest.MonkeyPatch
) -> None:
    vetter = start_vetter(time=0.3)
    start = vetter._start

    async def suspended() -> Any:
        process = await start()
        os.kill(process.pid, signal.SIGSTOP)
        return process

    with monkeypatch.context() as patch:
        patch.setattr(vetter, "_start", suspended)
        with pytest.raises(Unavailable, match="at the moment"):
            await vetter.vet(regex("b"))
    await vetter.vet(regex("b"))


async def test_a_verdict_by_death_expires_and_is_tried_again_alone(
    start_vetter: StartVetter, monkeypatch: pytest.MonkeyPatch
) -> None:
    vetter = start_vetter(slow_cached=0.5)
    in_a_process, deaths, at_once = vetter._vet_in_a_process, 2, [0, 0]

    async def dying(constraint: Constraint) -> Any:
        nonlocal deaths
        at_once[0] += 1
        at_once[1] = max(at_once)
        try:
            if constraint.value == "unlucky" and deaths:
                deaths -= 1
                return None
            if constraint.value == "unlucky":
                assert at_once[0] == 1
                await asyncio.sleep(0.1)
                assert at_once[0] == 1, "others wait"
            return await in_a_process(constraint)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(vetter, "_vet_in_a_process", dying)
    for _ in range(2):
        with pytest.raises(ConstraintError, match="breaks the compiler"):
            await vetter.vet(regex("unlucky"))
    await asyncio.sleep(0.5)
    others = [vetter.vet(regex(f"x{number}"), "other") for number in range(6)]
    await asyncio.gather(*others[:3], vetter.vet(regex("unlucky")), *others[3:])
    await vetter.vet(regex("unlucky"))


async def test_a_slow_one_holds_up_nobody_else(start_vetter: StartVetter) -> None:
    vetter = start_vetter(time=3.0)
    await vetter.vet(regex("a"))
    (stuck,) = vetter.pids
    os.kill(stuck, signal.SIGSTOP)
    slow = asyncio.create_task(vetter.vet(regex("slow")))
    await asyncio.sleep(0)
    for count in range(5):
        await vetter.vet(regex(f"b{{{count}}}"))
    assert not slow.done()
    await slow


async def test_when_all_processes_are_busy_the_wait_is_bounded(start_vetter: StartVetter) -> None:
    vetter = start_vetter(time=3.0, processes=1, waiting=0.1)
    await vetter.vet(regex("a"))
    os.kill(vetter.pids[0], signal.SIGSTOP)
    slow = asyncio.create_task(vetter.vet(regex("slow")))
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await vetter.vet(regex("b"))
    await slow
    await vetter.vet(regex("b"))


async def test_a_key_that_floods_does_not_hold_others_up(start_vetter: StartVetter) -> None:
    vetter = start_vetter(processes=1)
    done: list[str] = []

    async def ask(key: str, number: int) -> None:
        await vetter.vet(regex(f"{key}{number}"), key)
        done.append(key)

    flood = [asyncio.create_task(ask("flood", number)) for number in range(30)]
    await asyncio.sleep(0)
    await asyncio.gather(*flood, asyncio.create_task(ask("other", 0)))
    assert done.index("other") <= 3


async def test_the_same_one_asked_many_times_is_compiled_once(start_vetter: StartVetter) -> None:
    vetter = start_vetter()
    await asyncio.gather(*(vetter.vet(SCHEMA) for _ in range(50)))
    assert len(vetter.pids) == 1


async def test_a_client_that_leaves_doesn_t_disturb_the_verdict(start_vetter: StartVetter) -> None:
    vetter = start_vetter()
    first = asyncio.create_task(vetter.vet(SCHEMA))
    second = asyncio.create_task(vetter.vet(SCHEMA))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled()


async def test_what_nobody_waits_for_any_more_is_not_compiled(start_vetter: StartVetter) -> None:
    vetter = start_vetter(time=1.0, processes=1)
    await vetter.vet(regex("a"))
    os.kill(vetter.pids[0], signal.SIGSTOP)
    slow = asyncio.create_task(vetter.vet(regex("slow")))
    await asyncio.sleep(0)
    abandoned = [asyncio.create_task(vetter.vet(regex(f"x{number}"))) for number in range(20)]
    await asyncio.sleep(0.01)
    for task in abandoned:
        task.cancel()
    await slow
    await vetter.vet(regex("b"))
    assert len(vetter._known) == 3
    assert not vetter._under_way
    assert not vetter._wanted
    await vetter.vet(regex("x0"))


async def test_a_process_killed_by_another_s_hand_condemns_nothing(
    start_vetter: StartVetter,
) -> None:
    vetter = start_vetter()
    await vetter.vet(regex("a"))
    os.kill(vetter.pids[0], signal.SIGSTOP)
    task = asyncio.create_task(vetter.vet(regex("b")))
    await asyncio.sleep(0.05)
    os.kill(vetter.pids[0], signal.SIGKILL)
    await task


async def test_too_much_memory_is_refused(start_vetter: StartVetter) -> None:
    vetter = start_vetter(memory=1_000_000)
    large = {"enum": [f"{number:05} " + "x" * 80 for number in range(2500)]}
    with pytest.raises(ConstraintError, match="memory"):
        await vetter.vet(Constraint("json_schema", json.dumps(large)))
    await vetter.vet(regex("a"))


async def test_an_idle_process_is_retired(start_vetter: StartVetter) -> None:
    vetter = start_vetter(idle=0.2)
    await vetter.vet(regex("a"))
    (pid,) = vetter.pids
    await until(lambda: vetter.pids == [])
    assert not alive(pid)
    await vetter.vet(regex("b"))


async def test_released_it_has_no_process_and_starts_another_when_asked(
    start_vetter: StartVetter,
) -> None:
    vetter = start_vetter()
    await vetter.vet(SCHEMA)
    (pid,) = vetter.pids
    await vetter.release()
    assert vetter.pids == []
    assert not alive(pid)
    await vetter.vet(regex("a+"))
    assert len(vetter.pids) == 1


async def test_without_its_vocabulary_it_says_unavailable(
    start_vetter: StartVetter, caplog: pytest.LogCaptureFixture
) -> None:
    vetter = start_vetter("/nonexistent")
    with pytest.raises(Unavailable, match="at the moment"):
        await vetter.vet(regex("a"))
    assert vetter.pids == []
    assert "could not start" in caplog.text


async def test_close_ends_what_is_under_way(start_vetter: StartVetter) -> None:
    vetter = start_vetter(time=60.0)
    await vetter.vet(regex("a"))
    os.kill(vetter.pids[0], signal.SIGSTOP)
    task = asyncio.create_task(vetter.vet(regex("b")))
    await asyncio.sleep(0.05)
    await vetter.close()
    with pytest.raises(Unavailable, match="stopping"):
        await task
    with pytest.raises(Unavailable, match="stopping"):
        await vetter.vet(regex("c"))
