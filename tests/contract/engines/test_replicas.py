"""Replicas that die, are cut off, come, go and change, with streams in flight all the while.

Each answer must have the tokens of an undisturbed run; the scripted engine gives them at a pace,
so that what happens, happens in mid-stream.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from maestrale.cluster import replica_connection as connection
from maestrale.cluster.engine import RayServeEngine
from maestrale.config.settings import Settings
from maestrale.engines.base import EngineConfig, GenerationRequest
from maestrale.errors import EngineError, MaestraleError
from maestrale.serve.hosting import cluster_options
from ray_cluster import RayCluster, up, wait_until
from running_engine import Answer, RunningEngine, collect

# A replica takes half a minute to come on a busy machine, and some tests wait for several.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STREAMS = 16
TOKENS = 60
PACE = 40  # tokens a second of each stream
POISON = 255


def config(**options: str) -> EngineConfig:
    paced = {"tokens_per_second": str(PACE), "length": "1000", **options}
    return EngineConfig(engine="scripted", model_dir="", max_model_len=2048, options=paced)


def request(number: int, tokens: int = TOKENS, first: int = 7) -> GenerationRequest:
    prompt = (first, *(number * 31 + place * place & 127 for place in range(70)))
    return GenerationRequest(request_id=f"r{number}", prompt=prompt, max_tokens=tokens, seed=number)


@pytest.fixture(scope="module")
def pair(ray_cluster: RayCluster) -> Iterator[RunningEngine]:
    running = ray_cluster.engine(config(), least=2, cpus=0.1, routing="round_robin")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def calm(pair: RunningEngine) -> list[Answer]:
    """What the answers are when nothing happens."""
    return pair.run(*(request(number) for number in range(STREAMS)))


def disturbed(running: RunningEngine, disturb: Callable[[], None], after: int = 15) -> list[Answer]:
    """All streams at once; `disturb` runs in mid-stream of each."""

    async def go() -> list[Answer]:
        begun = [asyncio.Event() for _ in range(STREAMS)]

        async def one(number: int) -> Answer:
            seen = 0

            async def count(delta: Any) -> None:
                nonlocal seen
                seen += len(delta.token_ids)
                if seen >= after:
                    begun[number].set()

            return await collect(running.engine, request(number), count)

        tasks = [asyncio.create_task(one(number)) for number in range(STREAMS)]
        for event in begun:
            await event.wait()
        await asyncio.to_thread(disturb)
        return list(await asyncio.gather(*tasks))

    return running.do(go())


def tokens(answers: list[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


@pytest.mark.parametrize("whom", ["engine", "replica"])
def test_sigkill_in_mid_stream_changes_no_answer(
    pair: RunningEngine, calm: list[Answer], whom: str
) -> None:
    wait_until(lambda: len(up(pair)) == 2)
    replayed = pair.engine.stats().replayed
    victim = up(pair)[0]
    pid = victim.engine_pid if whom == "engine" else victim.pid
    answers = disturbed(pair, lambda: os.kill(pid, signal.SIGKILL))
    # On the other one at once: the lost one is still being replaced, if it is quick.
    assert victim.name not in [replica.name for replica in pair.engine.replicas()]  # type: ignore[attr-defined]
    assert tokens(answers) == tokens(calm)
    assert pair.engine.stats().replayed - replayed == STREAMS // 2
    wait_until(lambda: len(up(pair)) == 2)


def test_a_thousand_cancelled_at_once_are_gone_from_the_replicas(pair: RunningEngine) -> None:
    wait_until(lambda: len(up(pair)) == 2)

    async def go() -> float:
        begun = 0

        async def one(number: int) -> None:
            nonlocal begun
            stream = pair.engine.generate(request(number, 1900))
            async with aclosing(stream) as deltas:  # type: ignore[type-var]
                async for _ in deltas:
                    begun += 1
                    await asyncio.sleep(3600)

        tasks = [asyncio.create_task(one(number)) for number in range(1000)]
        while begun < 120:  # as many as both engines decode at once, all but a few
            await asyncio.sleep(0.05)
        while sum(replica.stats.running for replica in pair.engine.replicas()) < 100:  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        since = time.monotonic()
        await asyncio.gather(*tasks, return_exceptions=True)
        return since

    since = pair.do(go())
    wait_until(lambda: time.monotonic() - since > 4.5)
    stats = pair.engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    steps = stats.steps
    time.sleep(1.2)
    assert pair.engine.stats().steps == steps, "an engine works on for nobody"


def test_a_request_that_kills_engines_is_refused_and_no_other_is_touched(
    ray_cluster: RayCluster,
) -> None:
    poisonous = config(crash_on_prompt=str(POISON), crash_at_token="0")
    running = ray_cluster.engine(poisonous, least=2, cpus=0.1)

    async def go() -> list[Any]:
        good = [collect(running.engine, request(number)) for number in range(4)]
        bad = collect(running.engine, request(9, first=POISON))
        return list(await asyncio.gather(bad, *good, return_exceptions=True))

    try:
        bad, *good = running.do(go())
        assert isinstance(bad, EngineError)
        assert "refused" in str(bad)
        assert [len(answer.tokens) for answer in good] == [TOKENS] * 4
        assert running.engine.stats().refused == 1
    finally:
        running.stop()


def test_more_load_brings_more_replicas_and_less_drains_them(
    ray_cluster: RayCluster, calm: list[Answer]
) -> None:
    small = config()
    small = EngineConfig(
        engine="scripted", model_dir="", max_model_len=2048, max_num_seqs=6, options=small.options
    )
    running = ray_cluster.engine(small, least=1, most=2, cpus=0.1)

    async def go() -> list[Answer]:
        load = [collect(running.engine, request(number, 600)) for number in range(20, 32)]
        tasks = [asyncio.create_task(each) for each in load]
        while len(up(running)) < 2:
            await asyncio.sleep(0.1)
        late = [collect(running.engine, request(number)) for number in range(STREAMS)]
        answers = await asyncio.gather(*late)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Two long answers, one on each: one of them holds a replica that is to go.
        held = await asyncio.gather(
            *(collect(running.engine, request(number, 300)) for number in range(40, 42))
        )
        return [*answers, *held]

    try:
        answers = running.do(go())
        assert tokens(answers[:STREAMS]) == tokens(calm)
        assert [len(answer.tokens) for answer in answers[STREAMS:]] == [300, 300]
        wait_until(lambda: len(running.engine.replicas()) == 1)  # type: ignore[attr-defined]
        assert running.engine.stats().replayed == 0, "it was killed, not drained"
    finally:
        running.stop()


def test_a_rolling_change_under_load_loses_and_changes_nothing(
    ray_cluster: RayCluster, calm: list[Answer]
) -> None:
    running = ray_cluster.engine(config(fingerprint="old"), least=2, cpus=0.1)
    engine = running.engine
    assert isinstance(engine, RayServeEngine)

    async def go() -> list[Answer]:
        answers: list[Answer] = []

        async def keep_asking(number: int) -> None:
            while engine.describe().fingerprint == "old":
                answers.append(await collect(engine, request(number)))
            answers.append(await collect(engine, request(number)))

        tasks = [asyncio.create_task(keep_asking(number)) for number in range(STREAMS)]
        await asyncio.sleep(0.5)
        await engine.change(config(fingerprint="new"))
        await asyncio.gather(*tasks)
        return answers

    try:
        answers = running.do(go())
        assert len(answers) >= 2 * STREAMS
        right = {answer.request.request_id: answer.tokens for answer in calm}
        assert all(answer.tokens == right[answer.request.request_id] for answer in answers)
        assert engine.stats().replayed == 0
        wait_until(lambda: [each.fingerprint for each in engine.replicas()] == ["new", "new"])
    finally:
        running.stop()


def test_a_second_server_takes_over_and_one_that_fails_changes_nothing(
    ray_cluster: RayCluster, calm: list[Answer]
) -> None:
    running = ray_cluster.engine(config(fingerprint="first"), least=2, cpus=0.1, app="shared")
    try:
        with ray_cluster.server(config(fail_start="By script."), least=2, app="shared") as said:
            assert said.startswith("failed: No replica could start:")
            assert "By script." in said
        wait_until(lambda: [each.fingerprint for each in up(running)] == ["first"] * 2)
        other = ray_cluster.server(config(fingerprint="other"), least=2, cpus=0.1, app="shared")
        with other as said:
            assert said == "up: other"
            wait_until(lambda: [each.fingerprint for each in up(running)] == ["other"] * 2)
            assert tokens([running.run(request(0))[0]]) == tokens(calm[:1])
            assert running.engine.stats().replayed == 0
            running.stop()
            assert ray_cluster.replicas("shared") == 2
        assert ray_cluster.replicas("shared") == 0
    finally:
        if not running.loop.is_closed():
            running.stop()


def test_one_from_zero_is_unloaded_and_started_again(
    ray_cluster: RayCluster, calm: list[Answer]
) -> None:
    """By this process alone: what it deploys anew are other replicas, with the same answers."""
    running = ray_cluster.engine(config(), least=1, most=2, cpus=0.1, app="zero")
    engine = running.engine
    assert isinstance(engine, RayServeEngine)
    try:
        (first,) = (replica.pid for replica in up(running))
        running.do(engine.unload())
        assert running.do(engine.health()).state == "unloaded"
        assert ray_cluster.replicas("zero") == 0
        wait_until(lambda: not _lives(first))
        running.do(engine.start())
        assert tokens(running.run(request(0))) == tokens(calm[:1])
        assert first not in {replica.pid for replica in up(running)}
    finally:
        running.stop()
    assert engine.stats().restarts == 0


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_node_that_is_cut_off_and_one_that_dies(
    ray_cluster: RayCluster, calm: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE", 3.0)
    node = ray_cluster.second_node(cpus=5)
    # Neither node has room for two of them.
    running = ray_cluster.engine(config(), least=2, cpus=5.0, routing="round_robin")
    try:
        nodes = {replica.node for replica in up(running)}
        assert len(nodes) == 2
        if ray_cluster.namespaces:
            assert tokens(disturbed(running, lambda: ray_cluster.cut(True))) == tokens(calm)
            ray_cluster.cut(False)
            wait_until(lambda: len(up(running)) == 2)
            # What the one that was cut off worked on is dropped.
            wait_until(lambda: running.engine.stats().running == 0)
        assert tokens(disturbed(running, node.kill)) == tokens(calm)
        assert len(up(running)) == 1
    finally:
        running.stop()


class TestBadStart:
    """What can't start says why, and ends."""

    def fails(self, cluster: RayCluster, config: EngineConfig, **more: Any) -> str:
        with pytest.raises(MaestraleError) as caught:
            cluster.engine(config, **{"least": 1, "cpus": 0.1, **more})
        return str(caught.value)

    def test_an_engine_that_fails_is_tried_a_few_times(self, ray_cluster: RayCluster) -> None:
        text = self.fails(ray_cluster, config(fail_start="The script says so."))
        assert "No replica could start" in text
        assert "The script says so." in text
        assert "Traceback" not in text

    def test_no_node_has_room(self, ray_cluster: RayCluster) -> None:
        text = self.fails(ray_cluster, config(), cpus=640.0)
        assert "No node of the cluster has room" in text
        assert "640 CPU" in text

    def test_no_node_has_the_gpus_of_one_replica(self, ray_cluster: RayCluster) -> None:
        settings = Settings(
            engine="vllm",
            tensor_parallel_size=2,
            pipeline_parallel_size=2,
            ray_address=ray_cluster.address,
        )
        asked = cluster_options(settings, EngineConfig(engine="vllm", model_dir=""))
        assert (asked.gpus, asked.stages) == (4, 2)
        text = self.fails(ray_cluster, config(), cpus=1.0, gpus=4, stages=2)
        assert "takes 1 CPU, 4 GPU" in text
        assert "each of its 2 stages takes 2 GPU of one node, and there is room for 1" in text
        assert "8 CPU, 2 GPU" in text
        assert "--tensor-parallel-size, --pipeline-parallel-size" in text

    def test_a_node_without_the_model_says_which(self, ray_cluster: RayCluster) -> None:
        absent = EngineConfig(engine="cpu", model_dir="/not/here")
        text = self.fails(ray_cluster, absent, model="/not/here/either")
        assert "does not have the model /not/here/either" in text

    def test_another_version_on_a_node(
        self, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("maestrale.__version__", "0.0.9")
        text = self.fails(ray_cluster, config())
        assert "the API process 0.0.9" in text
        assert "same version" in text
