"""Real engine processes, killed, stopped, hung and poisoned; the answers stay the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from maestrale.engines.base import GenerationRequest, TokenDelta
from maestrale.engines.scripted import ScriptedEngine
from maestrale.errors import EngineError, ReplayMismatch, Unavailable
from maestrale.models.vocabulary import BYTE_EOS
from maestrale.supervise.process import Restarts, SupervisedEngine
from maestrale.supervise.watchdog import Patience

from .conftest import (
    PACED,
    QUICK,
    StartEngine,
    alive,
    config,
    json_request,
    kill,
    read,
    request,
    undisturbed,
    until,
)

pytestmark = pytest.mark.anyio


def text_of(answer: TokenDelta) -> Any:
    """What an answer says, as JSON."""
    return json.loads(bytes(token for token in answer.token_ids if token != BYTE_EOS))


VARIANTS = {
    "sampled": request(),
    "to its natural end": request(stop_token_ids=(BYTE_EOS,), max_tokens=400),
    "with logprobs": request(logprobs=3),
    "mid-JSON": json_request(),
    "with forced tokens": request(forced=tuple(b"The answer, at length: ")),
}


@pytest.mark.parametrize("what", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("kill_at", [1, 20])
async def test_a_kill_mid_stream_changes_nothing(
    start_engine: StartEngine, what: GenerationRequest, kill_at: int
) -> None:
    engine = await start_engine(**PACED)
    answer = await read(engine, what, {kill_at: lambda: kill(engine)})
    assert [answer] == await undisturbed([what])
    assert engine.counters.restarts == 1
    assert engine.counters.replayed == 1


async def test_the_json_that_was_interrupted_is_valid(start_engine: StartEngine) -> None:
    engine = await start_engine(**PACED)
    answer = await read(engine, json_request(), {15: lambda: kill(engine)})
    assert len(answer.token_ids) > 15
    assert set(text_of(answer)) == {"name", "ages"}


async def test_an_engine_that_is_lost_while_idle_is_replaced_before_anybody_asks(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await start_engine(lose_idle_after="0.1", marker=str(tmp_path / "lost"))
    first = engine.engine_pid
    await until(lambda: engine.engine_pid not in (None, first))
    assert engine.counters.restarts == 1


async def test_a_kill_before_the_first_token(start_engine: StartEngine) -> None:
    engine = await start_engine(**PACED)
    kill(engine, signal.SIGSTOP)  # so that nothing is given before the kill
    answers = [asyncio.create_task(read(engine, request(n))) for n in range(3)]
    await asyncio.sleep(0.05)
    kill(engine)
    assert await asyncio.gather(*answers) == await undisturbed(request(n) for n in range(3))
    assert engine.counters.restarts == 1


async def test_embeddings_come_through_kills(start_engine: StartEngine) -> None:
    engine = await start_engine(**PACED)
    kill(engine, signal.SIGSTOP)
    wanted = [request(n, embed=True, max_tokens=0) for n in range(3)]
    answers = [asyncio.create_task(read(engine, what)) for what in (*wanted, request(9))]
    await asyncio.sleep(0.05)
    kill(engine)
    found = await asyncio.gather(*answers)
    assert found == await undisturbed([*wanted, request(9)])
    assert len({answer.embedding for answer in found[:3]}) == 3
    assert engine.counters.restarts == 1
    assert engine.counters.replayed == 4


async def test_two_kills_within_one_stream(start_engine: StartEngine) -> None:
    engine = await start_engine(**PACED)
    at = {5: lambda: kill(engine), 30: lambda: kill(engine)}
    assert [await read(engine, request(), at)] == await undisturbed([request()])
    assert engine.counters.restarts == 2


@pytest.mark.parametrize("streams", [1, 16])
async def test_three_kills_in_a_row(start_engine: StartEngine, streams: int) -> None:
    """Each new engine is killed as soon as it is there, before any new token."""
    engine = await start_engine(**PACED)
    kills = 1

    def again(paused: bool) -> None:
        nonlocal kills
        if not paused and kills < 3:
            kills += 1
            kill(engine)

    engine.on_pause(again)
    requests = [request(n, logprobs=n % 3) for n in range(streams)]
    answers = await asyncio.gather(
        *(
            read(engine, what, {9: lambda: kill(engine)} if n == 0 else {})
            for n, what in enumerate(requests)
        )
    )
    assert answers == await undisturbed(requests)
    assert engine.counters.restarts == 3
    assert engine.counters.refused == 0


async def test_sixteen_in_flight_of_every_kind(start_engine: StartEngine) -> None:
    engine = await start_engine(**PACED)
    requests = [json_request(n) if n % 4 == 0 else request(n, logprobs=n % 3) for n in range(16)]
    answers = await asyncio.gather(
        *(
            read(engine, what, {10: lambda: kill(engine)} if n == 3 else {})
            for n, what in enumerate(requests)
        )
    )
    assert answers == await undisturbed(requests)


async def test_a_request_that_comes_during_the_restart_waits_for_it(
    start_engine: StartEngine,
) -> None:
    engine = await start_engine(start_seconds="0.2")
    kill(engine)
    await until(lambda: engine.paused)
    assert (await engine.health()).state == "degraded"
    assert [await read(engine, request())] == await undisturbed([request()])
    assert engine.counters.replayed == 0


async def test_pauses_are_told_and_totals_go_on(start_engine: StartEngine) -> None:
    engine = await start_engine(**PACED)
    heard: list[bool] = []
    engine.on_pause(heard.append)
    assert engine.stats().prompt_tokens == 0, "calibration is nobody's request"
    await read(engine, request(), {50: lambda: kill(engine)})
    await until(lambda: engine.stats().generation_tokens >= 60)
    assert engine.stats().prompt_tokens >= 3
    assert heard == [True, False]
    assert not engine.paused


# An engine that can't be deterministic


async def test_without_determinism_what_was_sent_is_forced(start_engine: StartEngine) -> None:
    engine = await start_engine(nondeterministic="yes", **PACED)
    assert "deterministic" not in engine.describe().features
    answer = await read(engine, request(logprobs=1), {20: lambda: kill(engine)})
    assert len(answer.token_ids) == 60
    assert [entry.token_id for entry in answer.logprobs or ()] == list(answer.token_ids)
    told = await read(engine, json_request(), {20: lambda: kill(engine)})
    assert set(text_of(told)) == {"name", "ages"}


async def test_another_fingerprint_never_goes_on_with_an_answer(
    start_engine: StartEngine,
) -> None:
    engine = await start_engine(fingerprint="random", **PACED)
    with pytest.raises(ReplayMismatch, match="is not the same"):
        await read(engine, request(), {5: lambda: kill(engine)})
    kill(engine, signal.SIGSTOP)
    unbegun = asyncio.create_task(read(engine, request()))
    await asyncio.sleep(0.05)
    kill(engine)
    assert [await unbegun] == await undisturbed([request()])


# The watchdog


async def test_a_suspended_engine_is_replaced(start_engine: StartEngine) -> None:
    engine = await start_engine(**PACED)
    at = {5: lambda: kill(engine, signal.SIGSTOP)}
    assert [await read(engine, request(), at)] == await undisturbed([request()])
    assert engine.counters.restarts == 1


async def test_a_hung_engine_is_replaced(start_engine: StartEngine, tmp_path: Path) -> None:
    engine = await start_engine(hang_at_token="9", marker=str(tmp_path / "hung"))
    assert [await read(engine, request())] == await undisturbed([request()])
    assert engine.counters.restarts == 1


async def test_a_suspended_idle_engine_is_replaced(start_engine: StartEngine) -> None:
    engine = await start_engine()
    kill(engine, signal.SIGSTOP)
    await until(lambda: engine.counters.restarts == 1)
    assert (await engine.health()).state == "ready"


@pytest.mark.slow
async def test_a_slow_engine_is_not_taken_for_a_dead_one(start_engine: StartEngine) -> None:
    """Starting, and each step, take longer than the shortest patience."""
    patience = Patience(silence=0.9, step=0.3, tick=0.05)
    engine = await start_engine(patience=patience, step_seconds="0.7", start_seconds="1.2")
    await read(engine, request(max_tokens=4))
    assert engine.counters.restarts == 0


async def test_the_engine_says_why_it_is_lost(
    start_engine: StartEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start_engine(lose_at_token="9", marker=str(tmp_path / "lost"))
    assert [await read(engine, request())] == await undisturbed([request()])
    assert "The scripted engine is gone: the script said so" in caplog.text


# Poison


@pytest.mark.parametrize(
    "poison",
    [
        pytest.param({}, id="at once"),
        pytest.param({"crash_at_token": "3"}, id="at token 3", marks=pytest.mark.slow),
        pytest.param({"lose_at_token": "0"}, id="by an error", marks=pytest.mark.slow),
        pytest.param({"crash_at_token": "31"}, id="late", marks=pytest.mark.slow),
    ],
)
async def test_only_the_request_that_kills_the_engine_is_refused(
    start_engine: StartEngine, poison: dict[str, str]
) -> None:
    restarts = Restarts(most=5, pause=0.01)
    engine = await start_engine(restarts, crash_on_prompt="66", **poison, **PACED)
    good = [request(n) for n in range(6)]
    bad = request(7, prompt=(1, 66))
    tasks = [asyncio.create_task(read(engine, what)) for what in (*good[:3], bad, *good[3:])]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    refusal = answers.pop(3)
    assert isinstance(refusal, EngineError)
    assert "refused" in str(refusal)
    assert answers == await undisturbed(good)
    assert engine.counters.refused == 1
    assert (await engine.health()).state == "ready"
    assert [await read(engine, good[0])] == await undisturbed(good[:1])


@pytest.mark.slow
async def test_a_lone_request_that_hangs_the_engine_is_refused(start_engine: StartEngine) -> None:
    patience = Patience(silence=1.0, step=0.5, tick=0.05)
    engine = await start_engine(patience=patience, crash_on_prompt="66", hang_at_token="0")
    with pytest.raises(EngineError, match="refused"):
        await read(engine, request(prompt=(66,)))


@pytest.mark.slow
async def test_two_poisonous_requests_are_both_found(start_engine: StartEngine) -> None:
    engine = await start_engine(crash_on_prompt="66", **PACED)
    requests = [request(0, prompt=(66, 1)), request(1), request(2, prompt=(66, 2)), request(3)]
    answers = await asyncio.gather(
        *(read(engine, what) for what in requests), return_exceptions=True
    )
    assert [isinstance(answer, EngineError) for answer in answers] == [True, False, True, False]
    assert answers[1::2] == await undisturbed(requests[1::2])


async def test_a_request_the_engine_refuses_hurts_nobody(start_engine: StartEngine) -> None:
    engine = await start_engine(refuse_on_prompt="66")
    with pytest.raises(EngineError, match="The script refuses"):
        await read(engine, request(prompt=(66,)))
    with pytest.raises(EngineError, match="5000 tokens"):
        await read(engine, request(prompt=(1,) * 5000))
    assert engine.counters.restarts == 0


# Repeated failures


async def test_after_repeated_failures_requests_end_and_the_engine_recovers(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    engine = await start_engine(
        Restarts(most=2, window=1.5, pause=0.2),
        crash_at_token="0",
        marker=str(tmp_path / "crashed"),
        times="2",
        **PACED,
    )
    with pytest.raises(Unavailable, match="failed 2 times within") as ended:
        await read(engine, request())
    assert ended.value.retry_after is not None
    assert (await engine.health()).state == "dead"
    with pytest.raises(Unavailable, match="try again later"):
        await read(engine, request())
    await until(lambda: not engine.paused)
    assert (await engine.health()).state == "ready"
    assert [await read(engine, request())] == await undisturbed([request()])


async def test_kills_from_outside_are_no_failures_of_the_engine(start_engine: StartEngine) -> None:
    """As often as requests make progress in between, and where they make none."""
    engine = await start_engine(Restarts(most=2, pause=0.01), **PACED)
    at = {tokens: lambda: kill(engine) for tokens in (5, 15, 25, 35)}
    assert [await read(engine, request(), at)] == await undisturbed([request()])
    idle = engine.counters.restarts
    for deaths in range(1, 4):
        kill(engine)
        await until(lambda wanted=idle + deaths: engine.counters.restarts == wanted)  # type: ignore[misc]
    assert (await engine.health()).state == "ready"


async def test_nor_are_kills_while_it_starts(start_engine: StartEngine) -> None:
    engine = await start_engine(Restarts(most=2, pause=0.01), start_seconds="0.2")
    killed = children()
    kill(engine)
    for _ in range(3):
        await until(lambda: bool(children() - killed))
        for starting in children() - killed:
            killed.add(starting)
            with contextlib.suppress(ProcessLookupError):
                os.kill(starting, signal.SIGKILL)
    assert [await read(engine, request())] == await undisturbed([request()])


def children() -> set[int]:
    """The processes that this one has started."""
    found: set[int] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended
            found |= set(map(int, (task / "children").read_text().split()))
    return found


@pytest.mark.slow
async def test_one_poisonous_request_among_good_ones_under_kills_at_random_times(
    start_engine: StartEngine,
) -> None:
    engine = await start_engine(
        Restarts(pause=0.01), crash_on_prompt="66", crash_at_token="31", **PACED
    )
    chance = random.Random(3)
    kills = 0

    async def killer() -> None:
        nonlocal kills
        while True:
            await until(lambda: not engine.paused)
            await asyncio.sleep(chance.uniform(0, 0.25))
            kills += engine.engine_pid is not None
            kill(engine)

    good = [request(n, max_tokens=400) for n in range(16)]
    bad = request(16, prompt=(1, 66), max_tokens=400)
    tasks = [asyncio.create_task(read(engine, what)) for what in (*good[:7], bad, *good[7:])]
    killing = asyncio.create_task(killer())
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    killing.cancel()
    refusal = answers.pop(7)
    assert isinstance(refusal, EngineError)
    assert "refused" in str(refusal)
    assert answers == await undisturbed(good)
    assert kills > 10


async def test_failing_to_start_again_counts_too(start_engine: StartEngine, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    engine = await start_engine(
        Restarts(most=3, pause=0.01), fail_start_while=str(missing), **PACED
    )

    def kill_for_good() -> None:
        missing.touch()
        kill(engine)

    with pytest.raises(Unavailable, match="could not start again"):
        await read(engine, request(), {5: kill_for_good})
    missing.unlink()
    await until(lambda: not engine.paused)
    await read(engine, request())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fail_start": "the weights are damaged"}, "the weights are damaged"),
        ({"no_such_option": "1"}, "has no option no_such_option"),
    ],
)
async def test_a_failed_start_gives_the_reason(
    start_engine: StartEngine, options: dict[str, str], reason: str
) -> None:
    with pytest.raises(EngineError, match=reason):
        await start_engine(**options)


async def test_a_start_that_takes_too_long_is_given_up(start_engine: StartEngine) -> None:
    with pytest.raises(EngineError, match="not ready after 1 seconds"):
        await start_engine(patience=Patience(start=1.0, tick=0.05), start_seconds="60")


# Leaving


async def test_leaving_the_iterator_frees_the_engine(start_engine: StartEngine) -> None:
    engine = await start_engine(**PACED)
    for number in range(20):
        async for _ in engine.generate(request(number, max_tokens=4000)):
            break
    await until(lambda: engine.stats().running == engine.stats().waiting == 0)
    assert engine.stats().kv_cache_usage == 0


async def test_close_lets_answers_finish_within_the_grace_even_across_a_crash(
    start_engine: StartEngine,
) -> None:
    engine = await start_engine(**PACED)
    pid = engine.engine_pid
    closing: list[asyncio.Task[None]] = []
    at = {
        5: lambda: closing.append(asyncio.create_task(engine.close(20.0))),
        20: lambda: kill(engine),
    }
    answer = asyncio.create_task(read(engine, request(), at))
    await until(lambda: bool(closing))
    await asyncio.sleep(0)
    assert (await engine.health()).state == "draining"
    with pytest.raises(Unavailable, match="stopping"):
        await read(engine, request())
    assert [await answer] == await undisturbed([request()])
    await closing[0]
    assert pid is not None
    assert not alive(pid)


async def test_a_second_close_cuts_the_grace(start_engine: StartEngine) -> None:
    engine = await start_engine(tokens_per_second="5")
    answer = asyncio.create_task(read(engine, request()))
    await until(lambda: engine.stats().running == 1)
    patient = asyncio.create_task(engine.close(600.0))
    await asyncio.sleep(0.05)
    await engine.close(0.0)
    await patient
    with pytest.raises(Unavailable, match="stopping"):
        await answer


async def test_close_while_starting_and_while_restarting(start_engine: StartEngine) -> None:
    slow = SupervisedEngine(config(start_seconds="600"), patience=QUICK)
    starting = asyncio.create_task(slow.start())
    await asyncio.sleep(0.1)
    await slow.close()
    with pytest.raises(EngineError, match="stopping"):
        await starting
    engine = await start_engine(start_seconds="0.5")
    kill(engine)
    await until(lambda: engine.paused)
    await asyncio.sleep(0.1)
    await engine.close()


async def test_signals_of_the_terminal_and_the_service_manager_leave_the_engine_alone(
    start_engine: StartEngine,
) -> None:
    engine = await start_engine(**PACED)
    at = {5: lambda: kill(engine, signal.SIGINT), 10: lambda: kill(engine, signal.SIGTERM)}
    assert [await read(engine, request(), at)] == await undisturbed([request()])
    assert engine.counters.restarts == 0


async def test_one_that_is_unloaded_can_be_started_again(start_engine: StartEngine) -> None:
    """Its counters go on, and the process is gone meanwhile."""
    engine = await start_engine(**PACED)
    before = await read(engine, request())
    pid = engine.engine_pid
    assert pid is not None
    await until(lambda: engine.stats().generation_tokens == 60)
    await engine.unload()
    assert not alive(pid)
    assert engine.engine_pid is None
    assert (await engine.health()).state == "unloaded"
    stats = engine.stats()
    assert (stats.generation_tokens, stats.up, stats.loaded) == (60, True, False)
    with pytest.raises(Unavailable, match="loading"):
        await read(engine, request())
    await engine.start()
    assert (await engine.health()).state == "ready"
    assert await read(engine, request()) == before
    await until(lambda: engine.stats().generation_tokens == 120)
    assert (engine.counters.restarts, engine.stats().loaded) == (0, True)


async def test_one_that_is_known_beforehand_is_described_before_it_starts(tmp_path: Path) -> None:
    """A start that fails can be tried again."""
    stop = tmp_path / "stop"
    stop.touch()
    expected = ScriptedEngine(config())
    await expected.start()
    engine = SupervisedEngine(config(fail_start_while=str(stop)), expected=expected.describe())
    await expected.close()
    try:
        assert engine.describe().max_num_seqs == expected.describe().max_num_seqs
        assert (await engine.health()).state == "unloaded"
        with pytest.raises(EngineError):
            await engine.start()
        assert (await engine.health()).state == "unloaded"
        stop.unlink()
        await engine.start()
        assert len((await read(engine, request())).token_ids) == 60
        pid = engine.engine_pid
    finally:
        await engine.close()
    assert pid is not None
    assert not alive(pid)


async def test_the_log_names_the_model_of_several(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    engine = SupervisedEngine(config(), patience=QUICK, label="coder")
    await engine.start()
    try:
        kill(engine)
        await until(lambda: engine.counters.restarts == 1)
    finally:
        await engine.close()
    assert caplog.text.count("The engine of coder is ready") == 2
    assert "The engine of coder stopped: " in caplog.text
