"""A replica whose GPUs lie on two nodes. Ray is told of GPUs that are none; all else is real.

The scripted engine has an actor on each GPU, in the places where vLLM's Ray executor has its own.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from maestrale.engines.base import EngineConfig, GenerationRequest, TokenDelta
from maestrale.engines.scripted.actors import GpuActor
from maestrale.errors import EngineError
from ray_cluster import RayCluster, actors, gpus, placement_groups, up, wait_until
from running_engine import RunningEngine, collect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PAIR = {"least": 1, "cpus": 0.5, "gpus": 4, "stages": 2}
CONFIG = EngineConfig(
    engine="scripted",
    model_dir="",
    max_model_len=2048,
    options={"tokens_per_second": "40", "length": "1000"},
)
ACTOR = GpuActor.__name__


@pytest.fixture(scope="module")
def two_nodes(ray_cluster: RayCluster) -> Iterator[RayCluster]:
    """Two nodes of two GPUs each."""
    node = ray_cluster.second_node(cpus=1, gpus=2)
    with ray_cluster.joined():
        wait_until(lambda: gpus("cluster_resources") == 4)
        yield ray_cluster
    node.kill()


@pytest.fixture(scope="module")
def running(two_nodes: RayCluster) -> Iterator[RunningEngine]:
    engine = two_nodes.engine(CONFIG, **PAIR)
    yield engine
    engine.stop()
    wait_until(lambda: gpus() == gpus("cluster_resources"))
    assert actors(ACTOR) == []


REQUEST = GenerationRequest(request_id="r", prompt=(1, 2, 3), max_tokens=40, seed=5)


def test_one_node_that_has_all_the_gpus_takes_the_replica_whole(two_nodes: RayCluster) -> None:
    engine = two_nodes.engine(CONFIG, **PAIR | {"gpus": 2})
    try:
        assert placement_groups() == []
        assert gpus() == 2
        assert actors(ACTOR) == []
    finally:
        engine.stop()


def test_each_stage_lies_on_one_node_and_the_actor_with_the_first(running: RunningEngine) -> None:
    (found,) = placement_groups()
    assert found["strategy"] == "PACK"
    assert found["bundles"] == {
        0: {"CPU": 0.5, "GPU": 1.0},
        **{number: {"GPU": 1.0} for number in (1, 2, 3)},
    }
    nodes = found["bundles_to_node_id"]
    assert sorted(Counter(nodes.values()).values()) == [2, 2]
    (replica,) = up(running)
    assert nodes[0] == replica.node
    # The engine's own process has started an actor on each GPU.
    assert Counter(actor.node for actor in actors(ACTOR)) == Counter(nodes.values())
    assert gpus() == 0


def test_an_actor_that_dies_ends_the_replica_and_its_answers_go_on(running: RunningEngine) -> None:
    calm = running.run(REQUEST)[0].tokens
    (replica,) = up(running)
    victim = [actor.pid for actor in actors(ACTOR) if actor.node != replica.node][:1]
    seen = 0

    async def kill(delta: TokenDelta) -> None:
        nonlocal seen
        seen += len(delta.token_ids)
        if victim and seen >= 15:
            os.kill(victim.pop(), signal.SIGKILL)

    answer = running.do(collect(running.engine, REQUEST, kill))
    assert answer.tokens == calm
    assert running.engine.stats().replayed == 1
    assert not Path(f"/proc/{replica.pid}").exists()
    assert not Path(f"/proc/{replica.engine_pid}").exists()
    assert [each.name for each in up(running)] != [replica.name]
    wait_until(lambda: len(actors(ACTOR)) == 4)  # the dead engine's are gone


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gpus": 6, "stages": 3}, "each of its 3 stages takes 2 GPU of one node, and there is "),
        ({"gpus": 3, "stages": 1}, "takes 0.5 CPU, 3 GPU. The nodes have: "),
    ],
)
def test_what_no_nodes_can_hold_is_told(
    two_nodes: RayCluster, asked: dict[str, int], said: str
) -> None:
    with pytest.raises(EngineError) as caught:
        two_nodes.engine(CONFIG, **PAIR | asked)
    assert said in str(caught.value)
    assert "The nodes have: " in str(caught.value)
    assert "8 CPU, 2 GPU" in str(caught.value)
    assert "1 CPU, 2 GPU" in str(caught.value)
